"""What ``import deploy_prune`` offers."""

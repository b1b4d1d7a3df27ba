"""What a network is for: its data, its loss and its score."""

from deploy_prune.tasks.task import Score as Score
from deploy_prune.tasks.task import Task as Task

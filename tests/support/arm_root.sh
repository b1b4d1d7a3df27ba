#!/usr/bin/env bash
# Lay out an aarch64 Linux in a folder: Debian's Python and C library, PyPI's wheels of the runtimes, and QEMU's user-mode
# emulator to run them by. Nothing of it is installed on this machine, and it takes no root: packages are only unpacked.
#
#   tests/support/arm_root.sh FOLDER PIP [SPECIFIER...]      FOLDER must not be there; SPECIFIERs are for pip
set -euo pipefail
folder=$(realpath -m "$1") pip=$2 && shift 2
release=trixie python=3.13 # qemu-user before 8.1 shows programs the host's /proc/cpuinfo, and ONNX Runtime crashes on it

made=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$made"' EXIT

# apt with lists and a status of its own, as if nothing were installed.
packages() {
    local architecture=$1 state="$made/apt-$2" && shift 2
    mkdir -p "$state"/{lists,archives}/partial "$state"/etc/preferences.d && : >"$state/status"
    cat >"$state/etc/debian.sources" <<SOURCES
Types: deb
URIs: ${DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: $release
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    local options=(-qq -o "APT::Architecture=$architecture" -o "APT::Architectures::=$architecture" -o "Dir::State=$state"
        -o "Dir::State::status=$state/status" -o "Dir::Cache=$state" -o "Dir::Etc=$state/etc" -o APT::Sandbox::User=
        -o "Dir::Etc::sourcelist=$state/etc/debian.sources" -o Dir::Etc::sourceparts=-)
    apt-get "${options[@]}" update
    (cd "$state/archives" && apt-get "${options[@]}" "$@")
}
unpack() { for package in "$1"/*.deb; do dpkg-deb --extract "$package" "$2"; done; }

packages "$(dpkg --print-architecture)" qemu download qemu-user
unpack "$made/apt-qemu/archives" "$made/apt-qemu/all"
mv "$made/apt-qemu/all/usr/bin/qemu-aarch64" "$made"
mkdir -p "$made/root/usr/lib" && ln -s usr/lib "$made/root/lib" # as Debian's own tools begin: /lib is in /usr
packages arm64 arm64 install --yes --download-only --no-install-recommends python3 libstdc++6 libgomp1
unpack "$made/apt-arm64/archives" "$made/root"

platforms=()
for libc in 17 24 27 28 31 34 35 38 39 40 41; do platforms+=(--platform "manylinux_2_${libc}_aarch64"); done
"$pip" install --quiet --no-compile --target "$made/root/usr/local/lib/python$python/dist-packages" --only-binary=:all: \
    --python-version "$python" --implementation cp "${platforms[@]}" --platform manylinux2014_aarch64 "$@"

rm -rf "$made"/apt-*
trap - EXIT
mv "$made" "$folder"

#!/bin/sh
# Install resnet-export beside this machine's own TensorRT, in an environment that sees the system's Python packages.
#
#   ./install.sh [FOLDER]             the environment's folder, by default ~/resnet
#   PYTHON=python3.12 ./install.sh    with another Python than python3
#
# With wheels/ beside it, it needs no network. Exit codes: 0 done, 1 failed, 2 called wrongly, 3 something is missing.
set -eu

stop() {
    code=$1
    shift
    printf 'install.sh: %s\n' "$*" >&2
    exit "$code"
}

explain() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
}
case ${1-} in
    -h | --help) explain && exit 0 ;;
    -*) explain >&2 && exit 2 ;;
esac
[ $# -le 1 ] || stop 2 "expected one folder for the environment, got $#; give one, or none for ~/resnet"
venv=${1:-${HOME:?expected a home folder, got none; give FOLDER}/resnet}
case $venv in
    /*) ;;
    *) venv=$PWD/$venv ;;
esac
cd "$(dirname "$0")"

sha256sum --quiet -c SHA256SUMS >&2 || stop 1 "the kit is not what was packed (the files above); copy it again"

python=${PYTHON:-python3}
command -v "$python" >/dev/null || stop 3 "expected the command $python, got none; sudo apt-get install python3"
here=$("$python" -c 'import platform, sys; print("linux-%s-cp%d%d" % (platform.machine(), *sys.version_info[:2]))')
case $here in
    *-cp310 | *-cp311 | *-cp312 | *-cp313) ;;
    *) stop 3 "expected Python 3.10 to 3.13, got $here; JetPack 6 and 7 bring one, name another with PYTHON=..." ;;
esac
if [ -e wheels/PLATFORM ]; then
    [ "$here" = "$(cat wheels/PLATFORM)" ] ||
        stop 3 "the kit's wheels are for $(cat wheels/PLATFORM), and this is $here; make the kit with --wheels $here"
    from="--no-index --find-links wheels"
    cuda="cuda-python"
else
    from=
    cuda='cuda-python>=13'
    if grep -qs '^# R36 ' /etc/nv_tegra_release; then cuda='cuda-python>=12.8,<13'; fi # JetPack 6 has CUDA 12
fi

made=
if [ -e "$venv" ]; then
    [ -e "$venv/pyvenv.cfg" ] || stop 2 "$venv is there, and is no environment of Python; give another FOLDER"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop 3 "this Python makes no environments; sudo apt-get install python3-venv"
    made=yes
fi
remove_half() {
    [ -z "$made" ] || rm -rf "$venv"
}
trap remove_half EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf 'installing into %s ...\n' "$venv"
"$python" -m venv --system-site-packages "$venv" || stop 1 "no environment could be made at $venv"
pip() {
    "$venv/bin/python" -m pip --require-virtualenv install --no-user --quiet --disable-pip-version-check "$@"
}
# shellcheck disable=SC2086  # $from is several words, or none
pip $from ./resnet_export-*.whl "$cuda" ||
    stop 1 "pip failed, see above; a board without a network needs a kit that was made with --wheels $here"
pip --no-index --no-deps --force-reinstall ./resnet_export-*.whl || stop 1 "pip failed, see above"
trap - EXIT

deploy=$venv/bin/resnet-deploy
"$deploy" --version
said=$("$venv/bin/python" -c 'import numpy, PIL.Image, msgspec, cuda.bindings.runtime' 2>&1) ||
    stop 3 "the packages are installed and do not load: $(printf '%s' "$said" | grep -i error | tail -n 1)"
found=$("$venv/bin/python" -c 'import tensorrt; print(tensorrt.__version__)' 2>&1) ||
    stop 3 "TensorRT is missing, all else is installed: expected 'import tensorrt' to work in $python, got" \
        "$(printf '%s' "$found" | tail -n 1); on a Jetson: sudo apt-get install python3-libnvinfer, then run this again"
case $found in
    [0-9].* | 10.[0-2].*) stop 3 "expected TensorRT 10.3 or newer, got $found; JetPack 6.1 and newer bring one" ;;
esac
printf 'TensorRT %s\n\nnext:\n' "$found"
"$venv/bin/python" -m exporter.deployment.jetson.next_commands "$deploy" "$found" "$PWD"/bundles/*

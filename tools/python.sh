#!/bin/sh
# Print the path of a Python that can carry the project, or say what is missing and fail.
#
#   tools/python.sh         $PYTHON where it is set (a command, a path or a version), else the first of python3,
#                           python3.13, python3.12 and python3.11 that is 3.11 or later
#   tools/python.sh 3.12    that very version
#   tools/python.sh all     every version of 3.11, 3.12 and 3.13 that exists, one path a line
set -u

pyenv_versions="${PYENV_ROOT:-$HOME/.pyenv}/versions"

# A name on PATH may be a launcher that finds no interpreter behind it, so the candidate is asked to run.
# It answers with its real path; one without ensurepip cannot make a virtual environment with pip in it.
probe() { # candidate, exact version or empty
    "$1" -c '
import sys
want = sys.argv[1]
if sys.version_info < (3, 11) or want and want != "%d.%d" % sys.version_info[:2]:
    sys.exit(1)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(2)
# Inside an activated environment, the interpreter that it was made from: environments are not stacked.
print(getattr(sys, "_base_executable", sys.executable))
' "$2" 2>/dev/null </dev/null
}

# Distributions that split Python up keep venv in a package of its own: remember that one was found without it.
incomplete=
try() { # exact version or empty, candidates...
    wanted=$1
    shift
    for candidate in "$@"; do
        probe "$candidate" "$wanted"
        case $? in
            0) return 0 ;;
            2) incomplete=$candidate ;;
        esac
    done
    return 1
}

every_on_path() { # command name -> each such file on PATH
    old_ifs=$IFS
    IFS=:
    for folder in $PATH; do
        [ -x "$folder/$1" ] && printf '%s\n' "$folder/$1"
    done
    IFS=$old_ifs
}

# The folders on PATH and pyenv's may not hold blanks; nothing else is split.
find_version() { try "$1" $(every_on_path "python$1") $(every_on_path python3) "$pyenv_versions/$1".*/bin/python3; }

find_any() {
    try "" $(every_on_path python3) $(every_on_path python3.13) $(every_on_path python3.12) \
        $(every_on_path python3.11) "$pyenv_versions"/3.1[1-9].*/bin/python3
}

case "${1:-}" in
    all)
        for version in 3.11 3.12 3.13; do find_version "$version"; done
        exit 0
        ;;
    ?*)
        find_version "$1" && exit 0
        echo "Python $1 was not found on PATH or under $pyenv_versions." >&2
        exit 1
        ;;
esac

if [ -n "${PYTHON:-}" ]; then
    case $PYTHON in
        3.*) find_version "$PYTHON" && exit 0 ;;
        *) try "" "$PYTHON" && exit 0 ;;
    esac
    echo "PYTHON=$PYTHON: found no such Python, 3.11 or later and with the venv module." >&2
    exit 1
fi
find_any && exit 0

if [ -n "$incomplete" ] && command -v apt-get >/dev/null; then
    root=
    [ "$(id -u)" = 0 ] || root="sudo -n"
    if [ -z "$root" ] || $root true 2>/dev/null; then
        echo "set-up: installing python3-venv, which $incomplete lacks" >&2
        $root apt-get update -q >&2 </dev/null
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv >&2 </dev/null
        find_any && exit 0
    fi
fi
if [ -n "$incomplete" ]; then
    echo "$incomplete has no venv module: install it (on Debian: apt-get install python3-venv)." >&2
else
    echo "Python 3.11 or later is needed and none was found: install one, or name it with make PYTHON=/path/to/python." >&2
fi
exit 1

# What tools/serve and tools/test share: find a Python, install what is missing, make the virtual environment.
#
# Sourced, never run. Everything is done once: a stamp in the virtual environment holds the hash of what it was built
# from, so a second run costs a few milliseconds. System packages are installed only where a command is really missing,
# and only then is root needed; each installation says what it is and what for.
# shellcheck shell=bash

set -euo pipefail

PROJECT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${TRAILBOSS_VENV:-$PROJECT/.venv}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$(basename -- "$0"): $*"
    exit 1
}

# --- system packages ---------------------------------------------------------------------------------------------------

missing_packages=()
missing_reasons=()

# want PACKAGE REASON CHECK...: remember PACKAGE as missing unless the command CHECK succeeds.
want() {
    local package=$1 reason=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        missing_packages+=("$package")
        missing_reasons+=("$package: $reason")
    fi
}

compiles_c() { printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -x c -o /dev/null -; }
fuzzes_c() {
    printf '#include <stddef.h>\n#include <stdint.h>\nint LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { (void)d; return (int)(n & 0); }\n' |
        clang -fsanitize=fuzzer,address,undefined -x c -o /dev/null -
}
clang_runtime_package() {
    # Debian names the package after the major version of its clang, which may not be installed yet.
    local version
    version=$(clang -dumpversion 2>/dev/null || apt-cache show clang 2>/dev/null | sed -n 's/^Version: [0-9]*:*\([0-9]*\).*/\1/p' | head -n 1)
    printf 'libclang-rt-%s-dev' "${version%%.*}"
}

# install_missing: install what `want` found missing. Without anything missing it does nothing and needs no rights.
install_missing() {
    [ ${#missing_packages[@]} -gt 0 ] || return 0
    local reason as_root=()
    say "These system packages are missing and are installed now:"
    for reason in "${missing_reasons[@]}"; do say "  $reason"; done
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo -n)
        [ ${#as_root[@]} -gt 0 ] || die "not root: please run  apt-get install ${missing_packages[*]}  and try again"
    fi
    command -v apt-get >/dev/null || die "no apt-get here: please install ${missing_packages[*]} (Debian's names) and try again"
    local log
    log=$(mktemp)
    if ! {
        "${as_root[@]}" apt-get -q update &&
            DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -q -y --no-install-recommends install "${missing_packages[@]}"
    } >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing_packages[*]} (its last lines are above)"
    fi
    rm -f "$log"
    missing_packages=()
    missing_reasons=()
}

# --- Python ------------------------------------------------------------------------------------------------------------

python_serves() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python_makes_venvs() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
python_has_headers() { "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' >/dev/null 2>&1; }

# choose_python: print the first Python that is new enough: $PYTHON, python3.14 down to python3.11, python3.
choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        python_serves "$PYTHON" || die "PYTHON=$PYTHON is not CPython 3.11 or newer"
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if python_serves "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
}

source_hash() {
    {
        cat "$PROJECT/pyproject.toml" "$PROJECT"/native/*.[ch] "$PROJECT"/native/build_programs.py 2>/dev/null
        printf '%s\n' "$PROJECT" "$VENV"
    } | sha256sum | cut -c 1-64
}

# venv_is_current EXTRAS HASH: the environment was built from these very sources, with at least these extras.
venv_is_current() {
    local stamp
    [ -x "$VENV/bin/python" ] && compgen -G "$PROJECT/worker_protocol/trailboss_worker/_frame*.so" >/dev/null || return 1
    for stamp in "$VENV/.trailboss-"*; do
        [ -z "$1" ] || [ "$stamp" = "$VENV/.trailboss-$1" ] || continue # without extras any installation will do
        if [ "$(cat "$stamp" 2>/dev/null)" = "$2" ]; then return 0; fi
    done
    return 1
}

# ensure_venv EXTRAS: a virtual environment with Trailboss in it, editable; EXTRAS as pip writes them ("" or "test,lint").
ensure_venv() {
    local extras=$1 hash python log lock
    hash=$(source_hash)
    if venv_is_current "$extras" "$hash"; then return 0; fi

    # Two runs at the same time: the second waits here and then finds the work done.
    mkdir -p -- "$PROJECT/.cache" "$(dirname -- "$VENV")"
    exec {lock}>"$PROJECT/.cache/tools.lock"
    if command -v flock >/dev/null; then flock "$lock"; fi
    if venv_is_current "$extras" "$hash"; then
        exec {lock}>&-
        return 0
    fi

    python=$(choose_python)
    if [ -z "$python" ]; then
        want python3 "Trailboss runs on CPython 3.11 or newer" false
        install_missing
        python=$(choose_python)
        [ -n "$python" ] || die "no Python 3.11 or newer was found; install one, or name it with PYTHON=/path/to/python3"
    fi
    want gcc "compiles the C frame codec" compiles_c
    want libc6-dev "headers for the C frame codec" compiles_c
    want python3-dev "headers for the C frame codec" python_has_headers "$python"
    want python3-venv "makes the virtual environment" python_makes_venvs "$python"
    install_missing
    python_makes_venvs "$python" || die "$python cannot make virtual environments (its module ensurepip is missing)"

    log=$(mktemp)
    if ! { [ -x "$VENV/bin/python" ] && python_serves "$VENV/bin/python"; }; then
        say "Making the virtual environment $VENV with $("$python" -V 2>&1)"
        rm -rf -- "$VENV"
        "$python" -m venv "$VENV" >"$log" 2>&1 || {
            cat "$log" >&2
            die "$python could not make $VENV"
        }
    fi
    say "Installing Trailboss${extras:+ with its extras $extras} into $VENV (a minute or two, once)"
    if ! (cd -- "$PROJECT" && "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input -q -e ".${extras:+[$extras]}") >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "pip could not install Trailboss (its last lines are above)"
    fi
    rm -f "$log"
    if ! "$VENV/bin/python" -c 'import trailboss_worker._frame' 2>/dev/null; then
        say "The C frame codec could not be built; the slower plain-Python one is used."
    fi
    printf '%s' "$hash" >"$VENV/.trailboss-$extras"
    exec {lock}>&-
}

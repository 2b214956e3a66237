#!/bin/sh
# strace_worker.sh COMMAND...: runs COMMAND. The first line of the file named by KILL_PLAN (taken off it by the worker
# that reads it) is `SYSCALL N`: then COMMAND runs under strace and dies by SIGKILL at its Nth call of SYSCALL.
plan=$(flock "$KILL_PLAN" sh -c 'head -n 1 "$1"; sed -i 1d "$1"' plan "$KILL_PLAN.lines" 2>/dev/null)
if [ -z "$plan" ]; then
    exec "$@"
fi
# shellcheck disable=SC2086 - two words
set -- $plan -- "$@"
call=$1 count=$2
shift 3
exec strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$count" "$@"

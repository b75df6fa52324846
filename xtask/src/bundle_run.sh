#!/usr/bin/env bash
# Runs this bundle: ./run.sh [demo|test|bench] [arguments]. Needs no Rust; uses the GPU if its driver is there.
#   ./run.sh bench [--quick] [--filter TEXT]... [--out DIR] [--peers [--python PROGRAM]]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# Where the programs find their tensors, and the tests find the command line.
export SAGE_DATA_DIR="$here/data"
export SAGE_PROGRAM="$here/bin/sage"

verb=${1:-demo}
[ $# -eq 0 ] || shift

case $verb in
demo)
    exec "$here/bin/sage" demo "$@"
    ;;
test)
    cd "$here"
    failed=()
    for test in tests/*; do
        echo "== $test"
        "$test" "$@" || failed+=("$test")
    done
    if [ ${#failed[@]} -ne 0 ]; then
        echo "FAILED: ${failed[*]}" >&2
        exit 1
    fi
    echo "all test programs passed"
    ;;
bench)
    # In the caller's folder, as --out may be relative to it.
    for bench in "$here"/benches/*; do
        echo "== ${bench##*/}"
        "$bench" "$@"
    done
    ;;
*)
    echo "usage: ./run.sh [demo|test|bench] [arguments]" >&2
    exit 2
    ;;
esac

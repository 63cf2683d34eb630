#!/bin/sh
# Builds the fuzz targets with clang, under AddressSanitizer and UndefinedBehaviorSanitizer, and runs each of them for
# its part of the time. What they learn stays in build/corpus for the next run. Needs cmake, ninja and the packages of
# tests/jpeg_files.py on PATH; `make fuzz` sees to that.
#
# Usage: fuzz.sh SECONDS, or fuzz.sh --check: whether clang can build them
set -eu

cd "$(dirname "$0")/.."
build=build/fuzz
corpus=build/corpus
findings=build/findings

can_build() {
  probe=$(mktemp -d)
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$probe/probe.cpp"
  clang++ -fsanitize=fuzzer,address,undefined "$probe/probe.cpp" -o "$probe/probe" 2>"$probe/log" && status=0 || status=1
  rm -rf "$probe"
  return $status
}

if ! can_build; then
  echo "fuzz: clang++ with libFuzzer and the sanitizers' libraries is missing. Install it:" >&2
  echo "  Debian, Ubuntu:  apt-get install clang libclang-rt-dev   (libclang-rt-14-dev on Debian 12)" >&2
  echo "  Fedora, RHEL:    dnf install clang compiler-rt" >&2
  exit 1
fi
[ "$1" != --check ] || exit 0

cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=Release -DAFD_PYTHON=OFF \
  -DAFD_FUZZ=ON -DAFD_SANITIZE=address,undefined
cmake --build "$build"
mkdir -p "$findings"
seconds=$(($1 / 3))
for fuzzer in read decoders prepare; do
  python csrc/fuzz/make_seeds.py "$corpus/$fuzzer"
  echo "fuzz: ${fuzzer}_fuzzer for $seconds s; the corpus is in $corpus/$fuzzer"
  "$build/${fuzzer}_fuzzer" -max_total_time="$seconds" -max_len=4096 -timeout=25 -rss_limit_mb=2048 -verbosity=0 \
    -print_final_stats=1 -artifact_prefix="$findings/" "$corpus/$fuzzer" 2>"$findings/$fuzzer.log" || {
    cat "$findings/$fuzzer.log" >&2
    echo "fuzz: a finding of ${fuzzer}_fuzzer; the input is in $findings" >&2
    exit 1
  }
  grep '^stat::number_of_executed_units\|^stat::average_exec_per_sec' "$findings/$fuzzer.log"
done

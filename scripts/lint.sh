#!/bin/bash
# lint.sh MODULE...: runs every check that needs no root on the named module
# folders and on all scripts. Runs them all before it fails, so that one run
# shows everything.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

root=$PWD
failed=()

# check NAME COMMAND...: runs the command and remembers a failure.
check() {
	local name=$1
	shift
	echo "lint: $name"
	"$@" || failed+=("$name")
}

scripts=()
while IFS= read -r file; do
	scripts+=("$file")
done < <(grep -rlE --exclude-dir=.git --exclude-dir=.work --exclude-dir=bin '^#!/bin/(ba)?sh' --include='*.sh' --include=run .)
check "shellcheck" shellcheck "${scripts[@]}"

for module in "$@"; do
	cd "$root/$module" || exit 1
	check "go mod tidy ($module)" go mod tidy -diff
	check "go vet ($module)" go vet ./...
	check "golangci-lint ($module)" go tool "-modfile=$root/tools/go.mod" \
		golangci-lint run --allow-parallel-runners --config "$root/.golangci.yml" ./...
done

if [[ ${#failed[@]} -ne 0 ]]; then
	printf 'lint: failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "lint: all good"

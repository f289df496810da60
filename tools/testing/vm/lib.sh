# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the harness scripts share: progress lines, failure messages and logged steps.

: "${IMA_TRIM_START:=$(date +%s)}"
export IMA_TRIM_START

# step TEXT: one progress line with the time elapsed since the command was given.
step() {
	printf '[%4ds] %s\n' "$(($(date +%s) - IMA_TRIM_START))" "$*" >&2
}

# die TEXT: what failed and what to do about it.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# build_lock: has one run at a time make things in $cache, until this script ends or closes descriptor 8.
build_lock() {
	exec 8>"${cache:?}/build-lock"
	flock -n 8 || { step "waiting for another run that builds in $cache"; flock 8; }
}

# logged LOG COMMAND...: runs the command with its output in LOG, and shows the end of LOG when it fails.
logged() {
	local log=$1
	shift
	mkdir -p "${log%/*}"
	if ! "$@" >"$log" 2>&1 </dev/null; then
		# In the build root the cache is elsewhere than on the machine.
		printf -- '--- the last lines of %s:\n' "${log/#\/cache\//${IMA_TRIM_CACHE:-/cache}/}" >&2
		tail -n 25 "$log" >&2
		printf -- '---\n' >&2
		return 1
	fi
}

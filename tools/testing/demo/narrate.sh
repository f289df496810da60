# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# How the demonstrations tell what they do.

failed=0

# say TEXT...: what comes next, and why.
say() {
	printf '\n'
	printf '== %s\n' "$@"
}

# run COMMAND: shows a command as one would type it and what it prints, with long values cut to fit a line.
run() {
	printf '# %s\n' "$1"
	eval "$1" 2>&1 | sed -E 's/^[^ ]*: line [0-9]+: //; s/([0-9a-fA-F]{16})[0-9a-fA-F]{8,}/\1.../g'
	return "${PIPESTATUS[0]}"
}

# here COMMAND: the same, of a command that changes this shell and prints nothing.
here() {
	printf '# %s\n' "$1"
	eval "$1" || { echo '!! this should have worked'; failed=1; }
}

# The demonstration is a test too.
must() {
	run "$1" || { echo '!! this should have worked'; failed=1; }
}
must_fail() {
	run "$1" && { echo '!! this should have been refused'; failed=1; }
}

# end TEXT: the last words, if all went well.
end() {
	if [ "$failed" -ne 0 ]; then
		say "The demonstration failed."
		exit 1
	fi
	say "$1"
}

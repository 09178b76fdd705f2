#!/bin/bash
# Pipelines, here-documents, background jobs, traps, substitutions: what a shell script does all day.
set -u
cd "$(mktemp -d)" || exit 99

echo "-- pipelines"
seq 1 100000 | grep 7 | sort -rn | head -n 5 | tr '\n' ' '; echo "${PIPESTATUS[@]}"
false | true | (exit 3); echo "${PIPESTATUS[@]}"
set -o pipefail; false | true; echo "pipefail $?"; set +o pipefail
yes | head -n 3
diff <(seq 1 5) <(seq 1 6); echo "diff $?"

echo "-- here-documents"
name=world
cat <<END
hello $name, $((6 * 7)), $(echo nested)
END
cat <<'END' | wc -l
$not expanded
END
read -r first second <<<"one two"; echo "$second $first"

echo "-- background jobs"
(sleep 0.1; exit 5) & first=$!
(exit 6) & second=$!
wait "$first"; echo "first $?"
wait "$second"; echo "second $?"
for i in 1 2 3 4 5 6 7 8; do (echo "job $i" >"job.$i") & done
wait
cat job.*
coproc tr a-z A-Z
echo "through a coprocess" >&"${COPROC[1]}"; exec {COPROC[1]}>&-; cat <&"${COPROC[0]}"

echo "-- traps"
trap 'echo "got USR1"' USR1
kill -USR1 $$
(trap 'echo "subshell exit"' EXIT; exit 4); echo "$?"
trap 'echo "on TERM"; exit 9' TERM
bash -c 'trap "echo child got INT; exit 8" INT; kill -INT $$; sleep 1'; echo "child $?"
{ sh -c 'kill -KILL $$'; } 2>/dev/null; echo "killed $?"
trap 'echo "at the end"' EXIT
set -m
sleep 100 & kill -STOP $!; kill -CONT $!; kill $!; wait $! 2>/dev/null; echo "job $?"
set +m

echo "-- files"
mkdir -p a/b/c && touch a/{1,2,3} a/b/c/x && find a | sort
ln -s a/b link && ls link/ && cp -r a copy && diff -r a copy && rm -r copy
printf '%s\n' one two three >lines; mapfile -t array <lines; echo "${#array[@]} ${array[2]}"
sed -i 's/two/2/' lines; awk '{ n += length($0) } END { print n }' lines
exec 3<>lines; read -r line <&3; echo "read $line"; exec 3>&-
tar cf - a 2>/dev/null | tar tf - | sort | sha256sum
ulimit -n
ulimit -Sn 20; ls /proc/self/fd | wc -l
exit 7

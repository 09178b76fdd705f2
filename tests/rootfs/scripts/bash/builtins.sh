# Builtins only: nothing here makes another process.
set -u
declare -A table=([one]=1 [two]=2)
for key in one two; do printf '%s=%d\n' "$key" "${table[$key]}"; done
total=0
for ((i = 0; i < 10000; i++)); do ((total += i * i)); done
echo "$total ${#table[@]} $((2 ** 40)) $((7 % 3))"
text="The quick brown fox"
echo "${text^^} ${text//o/0} ${text:4:5} ${text%% *} ${#text}"
[[ $text =~ q(u)i ]] && echo "matched ${BASH_REMATCH[1]}"
fib() { local n=$1; if ((n < 2)); then result=$n; else fib $((n - 1)); local a=$result; fib $((n - 2)); ((result += a)); fi; }
fib 12; echo "fib $result"
printf '%05.1f|%-6s|%x|%q\n' 3.14159 ab 255 'a b'
echo written > /tmp/bash; echo more >> /tmp/bash
while read -r line; do echo "read $line"; done < /tmp/bash
mapfile -t lines < /tmp/bash; echo "${#lines[@]}"
read -r a b <<< "first second"; echo "$b $a"
[[ -f /tmp/bash && ! -e /tmp/none && -d /tmp ]] && echo tests
cd /usr/bin && echo "$PWD" && cd - > /dev/null && pwd
case $text in *brown*) echo case;; esac
trap 'echo trapped' USR1; kill -USR1 $$
trap 'echo leaving' EXIT
exec 5> /tmp/five; echo five >&5; exec 5>&-; read -r five < /tmp/five; echo "$five"
array=(c a b); echo "${array[*]:1}" "${array[@]/a/z}"; shopt -s extglob nullglob; cd /etc; echo p*d
set -- x y z; shift; echo "$# $*"; echo "${nothing:-default}" "${HOME}"
type cd; let 'x = 5 << 2'; echo $x; printf -v padded '%03d' 7; echo "$padded"
: "$UNSET_ON_PURPOSE"
echo "not reached"

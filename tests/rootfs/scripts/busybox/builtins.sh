# Busybox ash with its builtins: nothing here makes another process.
total=0; i=0
while [ $i -lt 2000 ]; do total=$((total + i * i)); i=$((i + 1)); done
echo "$total"
text="The quick brown fox"
echo "${#text} ${text%% *} ${text##* }"
printf '%05d|%-6s|%x\n' 42 ab 255
echo written > /tmp/sh; echo more >> /tmp/sh
while read -r line; do echo "read $line"; done < /tmp/sh
f() { local x=$1; [ "$x" -le 1 ] && { r=1; return; }; f $((x - 1)); r=$((r * x)); }
f 10; echo "$r"
case $text in *brown*) echo case;; esac
[ -f /tmp/sh ] && [ ! -e /none ] && test -d / && echo tests
trap 'echo trapped' USR1; kill -USR1 $$
trap 'echo leaving' EXIT
cd /usr/bin && pwd; cd / ; echo /et*
set -- x y z; shift; echo "$# $*"; echo "${nothing:-default} $HOME $PATH"
ulimit -n; umask 027; umask
unset nothing; eval 'echo evaluated'; type cd
exit 3

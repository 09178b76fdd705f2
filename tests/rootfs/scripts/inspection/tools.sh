# What procps and lsof make of /proc. Each line that is printed is the same wherever this runs.
exec 2>&1
export TERM=dumb
python3 -c '
import socket, time
listener = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 5353))
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/socket")
held = open("/tmp/held", "w")
print("up", flush=True)
time.sleep(1000)' >/tmp/up &
server=$!
sleep 1000 &
sleeper=$!
until grep -qs up /tmp/up; do sleep 0.05; done

say() { echo "-- $*"; }
# Exchanges numbers for names.
named() { sed -e "s/\b$server\b/SERVER/g" -e "s/\b$sleeper\b/SLEEPER/g" -e "s/\b$$\b/SHELL/g"; }

say ps
ps -o pid,ppid,stat,comm,args --no-headers -p $server,$sleeper | sed 's/import socket.*//' | named | tr -s ' '
ps -o ni,pri,cls,rtprio,nlwp,tty,euser,egroup --no-headers -p $sleeper | tr -s ' '
test "$(ps -o rss= -p $server)" -gt 4000 && test "$(ps -o vsz= -p $server)" -gt "$(ps -o rss= -p $server)" && echo memory
test "$(ps -o etimes= -p $sleeper)" -lt 1000 && ps -o lstart= -p $sleeper | grep -c "$(date +%Y)"
ps -e -o comm= | grep -cx sleep
ps -eLf | grep -c '[s]leep 1000'
ps axjf | grep -c '[s]leep 1000'
ps aux --sort=-rss | head -n 1 | tr -s ' '
ps -C sleep -o pid= | named | tr -d ' '
ps -p 999999 >/dev/null; echo $?
say top
top -b -n 1 -p $server,$sleeper | sed -n '7,$p' | named | tr -s ' ' | cut -d ' ' -f 2,3,4,5,9,13 | sort
top -b -n 1 | head -n 5 | sed 's/[0-9][0-9.,: ]*/N/g' | grep -c 'Tasks\|%Cpu\|Mem\|Swap\|load average'
say free
free -k | awk 'NR == 1 { print $1, $2, $3 } NR == 2 { print $1, ($2 > 0), ($3 > 0), ($4 > 0), ($2 >= $3 + $4), ($7 <= $2) } NR == 3 { print $1 }'
say uptime
uptime | grep -c 'load average: [0-9.]*, [0-9.]*, [0-9.]*'
uptime -s | grep -c '^20'
uptime -p | cut -d ' ' -f 1
say vmstat
vmstat 1 2 | awk 'NR == 2 { print NF, $1, $2 } NR > 2 { print NF, ($4 > 0) }'
vmstat -s | grep -c 'total memory\|idle cpu ticks\|boot time\|forks\|CPU context switches'
say pgrep
pgrep -x sleep | named
pgrep -f 'sleep 1000' | named
pgrep -P $$ -l sleep | named
pgrep -c -u root python3
pidwait -x nothing; echo $?
say pmap
pmap $server | head -n 1 | cut -d ' ' -f 1-6 | named
pmap $server | grep -c 'stack'
pmap -x $server | awk '/total kB/ { print NF, ($3 > 4000), ($4 > 2000), ($5 > 100) }'
pmap -X $server | awk 'NR == 2 { print $1, $2, $3 }'
pmap -d $server | tail -n 1 | sed 's/[0-9]\+/N/g'
pwdx $server | named
say lsof
lsof -p $server | awk '{ print $4, $5, $NF }' | grep -v ' mem \|DEL\|mem' | sed -e 's/pipe.*/pipe/' -e 's/:.*->/->/' | grep -c 'cwd\|rtd\|txt\|/tmp/held\|/tmp/socket\|/tmp/up'
lsof -n -P -a -p $server -i TCP | awk 'NR > 1 { print $5, $8, $9, $10 }' | sed 's/:[0-9]\{5\}/:PORT/' | sort
lsof -n -P -a -p $server -i UDP | awk 'NR > 1 { print $5, $8, $9 }'
lsof -t /tmp/held | named
lsof -t -i TCP:8080 | named
lsof -n -P -a -p $server -U | awk 'NR > 1 { print $5, $9 }'
say ends
pkill -x sleep; echo $?
wait $sleeper; echo $?
pkill -f 'socket.create_server' ; wait $server; echo $?
ps -o pid= -p $server,$sleeper; echo $?

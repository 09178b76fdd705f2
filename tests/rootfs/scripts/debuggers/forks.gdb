set pagination off
set confirm off
set debuginfod enabled off
set follow-fork-mode child
set print inferior-events off
break innermost
run forks
backtrace 1
continue

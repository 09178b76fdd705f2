set pagination off
set confirm off
set debuginfod enabled off
set print thread-events off
break innermost
commands
silent
printf "thread %d, argument %d\n", $_thread, $rdi
continue
end
run threads

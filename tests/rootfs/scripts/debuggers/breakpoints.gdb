set pagination off
set confirm off
set debuginfod enabled off
# There are no hardware breakpoints in a microVM.
set can-use-hw-watchpoints 0
break innermost
run
backtrace
info registers rip rdi
x/2i $pc
stepi
stepi
backtrace 2
watch *(long *)&counter
continue
info breakpoints
delete
print (long)innermost(7)
print (long)counter
set var *(long *)&counter = 100
finish
continue

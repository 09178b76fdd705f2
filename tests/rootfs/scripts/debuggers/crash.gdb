set pagination off
set confirm off
set debuginfod enabled off
run crash
print $_siginfo._sifields._sigfault.si_addr
print $_siginfo.si_code
info registers eflags
p $xmm0.v2_int64
kill

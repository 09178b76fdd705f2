/* ptrace(2), instructions and registers: single steps, breakpoints, all kinds of registers. Output as natively. */
#include "trace.h"

asm(".pushsection .text.steps, \"ax\", @progbits\n"
    ".balign 4096\n"
    ".globl steps, steps_number, steps_call, steps_end, loads_registers, loads_registers_end, target\n"
    "steps: mov $5, %ecx\n"
    "1: dec %ecx\n jnz 1b\n"
    "steps_number: mov $39, %eax\n"
    "steps_call: syscall\n"
    " nop\n"
    " pushfq\n pop %rax\n shr $8, %eax\n and $1, %eax\n"
    " ret\n"
    "steps_end: nop\n"
    "target: mov $77, %eax\n ret\n"
    "loads_registers: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov $1, %eax\n mov $2, %ebx\n mov $3, %ecx\n mov $4, %edx\n mov $5, %esi\n mov $6, %edi\n mov $7, %ebp\n mov $8, %r8d\n"
    " mov $9, %r9d\n mov $10, %r10d\n mov $11, %r11d\n mov $12, %r12d\n mov $13, %r13d\n mov $14, %r14d\n mov $15, %r15d\n"
    " movq %rax, %xmm0\n movq %rbx, %xmm15\n fld1\n fldpi\n"
    " int3\n"
    "loads_registers_end: fstp %st(0)\n fstp %st(0)\n movq %xmm7, %rax\n add %r15, %rax\n add %rbx, %rax\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
    ".balign 4096\n"
    ".popsection\n");
extern char steps_number[], steps_call[], steps_end[], loads_registers_end[];
extern long steps(void), target(void), loads_registers(void);

static const char constant[4096] __attribute__((aligned(4096))) = "a constant";
static volatile int handled;

static void handler(int number) {
    handled = number;
}

static int runs(void) {
    signal(SIGUSR1, handler);
    raise(SIGUSR2); /* suppressed: from here on the tracer steps */
    return (int)steps();
}

static const char *place(unsigned long rip) {
    static char text[32];
    if (rip >= (unsigned long)steps && rip < (unsigned long)steps_end)
        snprintf(text, sizeof text, "steps+%lu", rip - (unsigned long)steps);
    else if (rip >= (unsigned long)handler && rip < (unsigned long)handler + 16)
        snprintf(text, sizeof text, "handler+%lu", rip - (unsigned long)handler);
    else
        return "elsewhere";
    return text;
}

/* Starts a child that has reached `where`, by a breakpoint there that is taken away again. */
static pid_t child_at(int (*body)(void), void *where) {
    pid_t child = traced_child(body, 0);
    for (;;) {
        ptrace(PTRACE_CONT, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) == SIGUSR2)
            break;
    }
    errno = 0;
    long text = ptrace(PTRACE_PEEKTEXT, child, where, 0);
    SHOW(raw(PTRACE_POKETEXT, child, (unsigned long)where, (text & ~0xff) | 0xcc));
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    siginfo_t info;
    ptrace(PTRACE_GETSIGINFO, child, 0, &info);
    struct user_regs_struct regs = registers_of(child);
    printf("breakpoint: code %x, %lld behind it\n", info.si_code, regs.rip - (unsigned long)where);
    ptrace(PTRACE_POKETEXT, child, where, text);
    regs.rip = (unsigned long)where;
    ptrace(PTRACE_SETREGS, child, 0, &regs);
    return child;
}

static void single_steps(void) {
    TITLE("single steps");
    pid_t child = child_at(runs, steps);
    for (int step = 0; step < 40; step++) {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        struct user_regs_struct regs = registers_of(child);
        siginfo_t info = {0};
        ptrace(PTRACE_GETSIGINFO, child, 0, &info);
        printf("%s, signal %d, code %d, here %d, flags TF %lld, ecx %lld\n", place(regs.rip), WSTOPSIG(status), info.si_code,
               info.si_addr == (void *)regs.rip, regs.eflags >> 8 & 1, regs.rip < (unsigned long)steps_call ? regs.rcx : 0);
        if (regs.rip < (unsigned long)steps || regs.rip >= (unsigned long)steps_end)
            break;
    }
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
}

static void into_a_handler(void) {
    TITLE("a step into a handler");
    pid_t child = child_at(runs, steps);
    ptrace(PTRACE_SINGLESTEP, child, 0, SIGUSR1);
    wait_and_show("child", child);
    struct user_regs_struct regs = registers_of(child);
    siginfo_t info;
    ptrace(PTRACE_GETSIGINFO, child, 0, &info);
    printf("%s, rdi %lld, code %d, TF %lld\n", place(regs.rip), regs.rdi, info.si_code, regs.eflags >> 8 & 1);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
}

static int often(void) {
    signal(SIGUSR1, handler);
    for (int n = 0; n < 3000; n++)
        steps();
    raise(SIGUSR2);
    return (int)steps();
}

/* The same where the site has been called often. */
static void frequent_site(void) {
    TITLE("steps and breakpoints at a site that is called often");
    pid_t child = child_at(often, steps_number);
    for (int step = 0; step < 4; step++) {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        struct user_regs_struct regs = registers_of(child);
        printf("%s, signal %d, rax %d\n", place(regs.rip), WSTOPSIG(status), regs.rax == (unsigned long)child ? -1 : (int)regs.rax);
    }
    ptrace(PTRACE_DETACH, child, 0, 0);
    wait_and_show("child", child);
    child = child_at(often, steps_call);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    child = traced_child(often, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    for (int step = 0, inside = 0; step < 100000; step++) {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        unsigned long rip = registers_of(child).rip;
        if (rip == (unsigned long)steps)
            inside = 1;
        if (inside)
            printf("%s\n", place(rip));
        if (inside && !(rip >= (unsigned long)steps && rip < (unsigned long)steps_end))
            break;
    }
    ptrace(PTRACE_KILL, child, 0, 0);
    wait_and_show("child", child);
}

static int calls_registers(void) {
    return loads_registers() & 0xff;
}

static void show_registers(pid_t child) {
    struct user_regs_struct regs = registers_of(child);
    printf("%lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %lld\n", regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi,
           regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15);
    printf("orig_rax %lld cs %llx ss %llx ds %llx es %llx fs %llx gs %llx gs_base %llx eflags %llx at the place %d\n", regs.orig_rax, regs.cs,
           regs.ss, regs.ds, regs.es, regs.fs, regs.gs, regs.gs_base, regs.eflags & 0x202, regs.rip == (unsigned long)loads_registers_end);
}

static void registers(void) {
    TITLE("registers");
    pid_t child = traced_child(calls_registers, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    show_registers(child);
    for (unsigned long at = 0; at < sizeof(struct user_regs_struct); at += 8) {
        struct user_regs_struct regs = registers_of(child);
        unsigned long word = 0;
        raw(PTRACE_PEEKUSER, child, at, (unsigned long)&word);
        unsigned long expected;
        memcpy(&expected, (char *)&regs + at, 8);
        if (word != expected)
            printf("PEEKUSER %lu differs\n", at);
    }
    static const struct {
        const char *name;
        unsigned long at, value;
    } pokes[] = {
        {"r15", offsetof(struct user_regs_struct, r15), 100},
        {"rbx", offsetof(struct user_regs_struct, rbx), 20},
        {"cs 0", offsetof(struct user_regs_struct, cs), 0},
        {"cs", offsetof(struct user_regs_struct, cs), 0x33},
        {"cs of the kernel", offsetof(struct user_regs_struct, cs), 0x10},
        {"ss of the kernel", offsetof(struct user_regs_struct, ss), 0x18},
        {"ds", offsetof(struct user_regs_struct, ds), 0},
        {"fs_base too large", offsetof(struct user_regs_struct, fs_base), 1ul << 63},
        {"gs_base", offsetof(struct user_regs_struct, gs_base), 0x1234000},
        {"eflags", offsetof(struct user_regs_struct, eflags), 0xd5},
        {"unaligned", 4, 1},
        {"beyond", sizeof(struct user), 1},
        {"far beyond", -8ul, 1},
        {"i387", offsetof(struct user, i387), 1},
        {"u_tsize", offsetof(struct user, u_tsize), 1},
        {"DR0", offsetof(struct user, u_debugreg[0]), 0},
        {"DR4", offsetof(struct user, u_debugreg[4]), 0},
        {"DR6", offsetof(struct user, u_debugreg[6]), 0},
        {"DR7", offsetof(struct user, u_debugreg[7]), 0},
    };
    for (unsigned n = 0; n < sizeof pokes / sizeof *pokes; n++) {
        unsigned long word = 0;
        errno = 0;
        long written = raw(PTRACE_POKEUSER, child, pokes[n].at, pokes[n].value);
        int error = errno;
        long seen = raw(PTRACE_PEEKUSER, child, pokes[n].at, (unsigned long)&word);
        if (pokes[n].at == offsetof(struct user_regs_struct, fs_base))
            word = 0; /* wherever it is */
        printf("%s: %ld %s, %ld %lx\n", pokes[n].name, written, written ? strerrorname_np(error) : "", seen, word);
    }
    show_registers(child);
    SHOW(raw(PTRACE_PEEKUSER, child, 0, 8));
    SHOW(raw(PTRACE_GETREGS, child, 0, 8));
    SHOW(raw(PTRACE_SETREGS, child, 0, 8));

    TITLE("floating point and vectors");
    struct user_fpregs_struct fp;
    SHOW(ptrace(PTRACE_GETFPREGS, child, 0, &fp));
    printf("cwd %x swd %x ftw %x mxcsr %x\n", fp.cwd, fp.swd, fp.ftw, fp.mxcsr);
    printf("st0 %08x%08x st1 %08x%08x\n", fp.st_space[1], fp.st_space[0], fp.st_space[5], fp.st_space[4]);
    printf("xmm0 %u xmm15 %u\n", fp.xmm_space[0], fp.xmm_space[60]);
    fp.xmm_space[28] = 1000;
    SHOW(ptrace(PTRACE_SETFPREGS, child, 0, &fp));
    fp.mxcsr |= 1u << 31;
    SHOW(ptrace(PTRACE_SETFPREGS, child, 0, &fp));

    TITLE("register sets");
    unsigned char area[16384];
    struct iovec io = {area, sizeof area};
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)1, &io));
    printf("%zu\n", io.iov_len);
    io.iov_len = 16;
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)1, &io));
    printf("%zu r15 %lu\n", io.iov_len, *(unsigned long *)area);
    io.iov_len = 12;
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)1, &io));
    io.iov_len = sizeof area;
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)2, &io));
    printf("%zu xmm7 %u\n", io.iov_len, *(unsigned *)(area + 160 + 7 * 16));
    io.iov_len = sizeof area;
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)0x202, &io));
    unsigned long components = *(unsigned long *)(area + 464);
    printf("x87 and SSE %lu, whole %d, xmm7 %u, in use %lu\n", components & 3, io.iov_len > 576, *(unsigned *)(area + 160 + 7 * 16),
           *(unsigned long *)(area + 512) & 3);
    *(unsigned *)(area + 160 + 7 * 16) = 50;
    SHOW(ptrace(PTRACE_SETREGSET, child, (void *)0x202, &io));
    area[520] = 1;
    SHOW(ptrace(PTRACE_SETREGSET, child, (void *)0x202, &io));
    io.iov_len = 64;
    SHOW(ptrace(PTRACE_SETREGSET, child, (void *)0x202, &io));
    SHOW(ptrace(PTRACE_GETREGSET, child, (void *)0x999, &io));
    SHOW(raw(PTRACE_GETREGSET, child, 1, 8));
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child, 100 + 20 + 50", child);
}

static int reads_the_constant(void) {
    raise(SIGUSR2);
    return *(volatile const char *)constant + (int)target();
}

static void memory(void) {
    TITLE("memory");
    pid_t child = traced_child(reads_the_constant, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    SHOW(ptrace(PTRACE_PEEKDATA, child, constant, 0) == *(long *)constant);
    SHOW(ptrace(PTRACE_PEEKDATA, child, constant + 3, 0) == *(long *)(constant + 3));
    SHOW(raw(PTRACE_POKEDATA, child, (unsigned long)constant, 1));
    SHOW(raw(PTRACE_PEEKDATA, child, 8, (unsigned long)&handled));
    SHOW(raw(PTRACE_POKEDATA, child, 8, 0));
    SHOW(raw(PTRACE_PEEKDATA, child, 1ul << 63, (unsigned long)&handled));
    SHOW(raw(PTRACE_PEEKDATA, child, (unsigned long)constant, 8));
    long text = ptrace(PTRACE_PEEKTEXT, child, target, 0);
    ptrace(PTRACE_POKETEXT, child, target, (text & ~0xff00l) | 78 << 8);
    printf("own memory: %c, %ld\n", *(volatile const char *)constant, target());
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child, 1 + 78", child);
    TITLE("an instruction pointer that can't be");
    child = traced_child(reads_the_constant, 0);
    ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rip), 1ul << 62);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, SIGSEGV);
    wait_and_show("child", child);
}

static int stopped(void) {
    raise(SIGUSR2);
    return 1;
}

/* As debuggers call functions of the program, also in the middle of a system call that is to be restarted. */
static int sleeping(void) {
    struct timespec time = {0, 200000000};
    return syscall(SYS_nanosleep, &time, NULL) ? 1 : 44;
}

static void called_function(void) {
    TITLE("a function that the tracer calls");
    pid_t child = traced_child(sleeping, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    status_field(child, "State", "S");
    kill(child, SIGUSR1);
    wait_and_show("child", child);
    struct user_regs_struct saved = registers_of(child), regs = saved;
    printf("orig_rax %lld rax %lld\n", saved.orig_rax, saved.rax);
    regs.rsp = (regs.rsp - 256) & ~15ul;
    regs.rsp -= 8;
    ptrace(PTRACE_POKEDATA, child, regs.rsp, 0x10); /* returns to nowhere */
    regs.rip = (unsigned long)target;
    regs.orig_rax = -1;
    ptrace(PTRACE_SETREGS, child, 0, &regs);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    regs = registers_of(child);
    printf("rip %llx rax %lld\n", regs.rip, regs.rax);
    ptrace(PTRACE_SETREGS, child, 0, &saved);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    single_steps();
    into_a_handler();
    frequent_site();
    registers();
    memory();
    called_function();
    pid_t child = traced_child(stopped, 0);
    SHOW(raw(9999, child, 0, 0));
    SHOW(raw(-1, child, 0, 0));
    SHOW(raw(PTRACE_SETOPTIONS, child, 0, 0x400000));
    SHOW(raw(PTRACE_SETOPTIONS, child, 0, -1ul));
    SHOW(raw(PTRACE_KILL, child, 0, 0));
    wait_and_show("child", child);
    return 0;
}

//! memcpy and its relatives, which compiled code calls and no C library provides here. String instructions are quick on
//! every processor with ERMS, and need no vector registers.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.torpor_memory, "ax", @progbits
    .globl memcpy, memmove, memset, memcmp, bcmp, strlen
    .balign 16
memcpy:
    mov %rdi, %rax
    mov %rdx, %rcx
    cmp $16, %rdx
    jb 1f
    cmp $32, %rdx
    ja 2f
    movups (%rsi), %xmm0
    movups -16(%rsi,%rdx), %xmm1
    movups %xmm0, (%rdi)
    movups %xmm1, -16(%rdi,%rdx)
    ret
1:  cmp $8, %rdx
    jb 3f
    mov (%rsi), %rcx
    mov -8(%rsi,%rdx), %r8
    mov %rcx, (%rdi)
    mov %r8, -8(%rdi,%rdx)
    ret
3:  cmp $4, %rdx
    jb 4f
    mov (%rsi), %ecx
    mov -4(%rsi,%rdx), %r8d
    mov %ecx, (%rdi)
    mov %r8d, -4(%rdi,%rdx)
    ret
4:  test %rdx, %rdx
    jz 5f
    movzbl (%rsi), %ecx
    movzbl -1(%rsi,%rdx), %r8d
    cmp $3, %rdx
    jne 6f
    movzbl 1(%rsi), %r9d
    mov %r9b, 1(%rdi)
6:  mov %cl, (%rdi)
    mov %r8b, -1(%rdi,%rdx)
5:  ret
2:  rep movsb
    ret

    .balign 16
memmove:
    mov %rdi, %rcx
    sub %rsi, %rcx
    cmp %rdx, %rcx
    jae memcpy          # the target does not start within the source
    mov %rdi, %rax
    cmp $16, %rdx
    jb 1b
    mov %rdx, %rcx
    # Backwards, 16 bytes at a time (the direction flag makes string moves slow).
7:  cmp $16, %rcx
    jb 8f
    movups -16(%rsi,%rcx), %xmm0
    movups %xmm0, -16(%rdi,%rcx)
    sub $16, %rcx
    jmp 7b
8:  test %rcx, %rcx
    jz 9f
    movzbl -1(%rsi,%rcx), %r8d
    mov %r8b, -1(%rdi,%rcx)
    dec %rcx
    jmp 8b
9:  ret

    .balign 16
memset:
    mov %rdi, %r8
    mov %esi, %eax
    mov %rdx, %rcx
    rep stosb
    mov %r8, %rax
    ret

    .balign 16
bcmp:
memcmp:
    xor %ecx, %ecx
10: cmp %rdx, %rcx
    je 12f
    lea 8(%rcx), %r8
    cmp %rdx, %r8
    ja 11f
    mov (%rdi,%rcx), %r9
    cmp (%rsi,%rcx), %r9
    jne 11f
    mov %r8, %rcx
    jmp 10b
11: movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r8d
    sub %r8d, %eax
    jne 13f
    inc %rcx
    jmp 10b
12: xor %eax, %eax
13: ret

    .balign 16
strlen:
    xor %eax, %eax
14: cmpb $0, (%rdi,%rax)
    je 15f
    inc %rax
    jmp 14b
15: ret
    .text
"#,
    options(att_syntax)
);

"""The VM process and the guest kernel on an ordinary KVM, where no such hardware is needed.

A stock Debian kernel with kvm-amd (nested paging) boots in QEMU's software emulation and runs the
statically linked torpor-vmm. Emulation shows that KVM is used rightly, not how fast it is.
"""

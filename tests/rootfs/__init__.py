"""Root file systems for tests, demo and benchmarks, made from Debian, npm and PyPI packages.

`python -m tests.rootfs [NAME...]` makes those named (default: all) below build/rootfs: for each a
directory NAME, in which programs run natively under chroot(2), and the image NAME.erofs of it.
Test programs are compiled from programs/, and scripts/NAME is copied to /srv of NAME. What
exists and is up to date is left alone; downloads are kept in build/downloads.
`python -m tests.rootfs --lock` renews lock.json, which pins every package.
"""

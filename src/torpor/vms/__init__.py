"""VMs that run without a daemon, their stored states, and the templates these need.

    run/named/NAME.lock       flock, held as long as the VM runs, however that ends
    run/named/NAME.json       what runs there
    run/named/NAME.sock       where its VM process takes commands
    templates/lock            flock: shared while reading references, exclusive while changing
    templates/sha256-HEX      a template's file
    templates/sha256-HEX.json whose it is, and of which image
    templates/refs/KIND/NAME  one file per user of a template, holding its digest

Whoever removes what is left of a VM holds its lock.
"""

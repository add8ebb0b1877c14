"""The kernel's side: sockets, their options, and batches of datagrams with kernel time stamps."""

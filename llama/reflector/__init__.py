"""The reflector: answers probes; knows nothing of collectors."""

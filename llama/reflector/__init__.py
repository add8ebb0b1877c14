"""The reflector: answers probes; knows nothing of collectors."""

import os

# Nothing here multiplies matrices: numpy's threads for that would only hold on to capabilities
# that `llama.reflector.privilege` gives up, each thread having its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

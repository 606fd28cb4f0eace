"""Hostile bodies, one group per promise of the walls.

Each is a body of `build_model`. Whatever it manages to do that it must not be able to do, it
reports as an exception with the word BREACH; the campaign looks at side effects from outside as
well. Names in capitals are defined for them: CANARY is a folder with a file `secret` that everybody
may read and write, FOLDERS where else a file could be left, PID the process that scores, TCP, UDP,
UNIX and ABSTRACT where it listens, ROWS the number of validation rows, ALLOWED the system calls
that a filter lets through, CLONE the number of one.
"""

import dataclasses
import re
import textwrap

from env.execution.code_executor import CodeExecutor
from env.execution.results import Execution
from env.execution.scheduler import Scheduler
from env.execution.scoring import Scorer, Split
from env.sandbox import wire
from env.tables.table import Dataset

_TRUSTED_CLASSES = {
    kind.__name__ for kind in (CodeExecutor, Dataset, Execution, Scheduler, Scorer, Split)
}
"""Classes of the trusted side, which no program may find in its memory."""

BENIGN = "from sklearn.naive_bayes import GaussianNB\nmodel = GaussianNB().fit(x_train, y_train)"
"""A harmless program, with which every attack ends that sets no model."""

BENIGN_BODY = textwrap.indent(BENIGN, "    ").lstrip()

HARMLESS = ""


@dataclasses.dataclass(frozen=True)
class Attack:
    """A hostile body.

    Attributes:
      name: name of the test.
      code: the body, without indentation.
      error: a regular expression that the reported error must match; empty allows all but a breach.
      is_slow: whether it runs until a limit ends it.
      is_raw: whether the code is the action as it stands.
    """

    name: str
    code: str
    error: str = HARMLESS
    is_slow: bool = False
    is_raw: bool = False

    def body(self, values: dict[str, object]) -> str:
        """The action, with those of the names in `values` that it uses."""
        if self.is_raw:
            return self.code
        used = [name for name in values if re.search(rf"\b{name}\b", self.code)]
        code = "".join(f"{name} = {values[name]!r}\n" for name in used) + self.code.strip("\n")
        code += f"\nif 'model' not in dir():\n{textwrap.indent(BENIGN, '    ')}"
        return textwrap.indent(code, "    ").lstrip()


def _denied(name: str, *snippets: str, prelude: str = "") -> Attack:
    """An attack in which each snippet must raise something."""
    code = f"""
import ctypes, io, os, pathlib, signal, socket, subprocess, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    # C functions do not raise.
    if result == -1 or result is None:
        raise OSError(ctypes.get_errno(), 'denied')
    return result
{prelude}
for snippet in {list(snippets)!r}:
    try:
        exec(snippet, dict(globals(), **locals()))
    except Exception:
        continue
    raise RuntimeError('BREACH ' + snippet)
"""
    return Attack(name, code.strip())


_FILES = [
    _denied(
        "read_canary",
        "open(CANARY + '/secret').read()",
        "os.open(CANARY + '/secret', os.O_RDONLY)",
        "io.FileIO(CANARY + '/secret')",
        "pathlib.Path(CANARY, 'secret').read_bytes()",
        "import numpy; numpy.fromfile(CANARY + '/secret', 'u1')",
        "import numpy; numpy.memmap(CANARY + '/secret', 'u1')",
        "import numpy; numpy.loadtxt(CANARY + '/secret', dtype=str)",
        "import pandas; pandas.read_csv(CANARY + '/secret')",
        "import joblib; joblib.load(CANARY + '/secret')",
        "check(libc.open((CANARY + '/secret').encode(), 0))",
        "check(libc.fopen((CANARY + '/secret').encode(), b'r') or None)",
        "check(libc.openat(-100, (CANARY + '/secret').encode(), 0))",
        "os.chdir(CANARY)",
        "os.chroot(CANARY)",
    ),
    _denied(
        "read_system",
        "open('/etc/passwd')",
        "open('/etc/shadow')",
        "open('/proc/self/environ')",
        "open('/proc/self/mem')",
        "open('/proc/self/maps')",
        "open(f'/proc/{PID}/environ')",
        "open(f'/proc/{PID}/mem', 'r+b')",
        "open(f'/proc/{os.getppid()}/mem', 'r+b')",
        "open('/proc/1/cmdline')",
        "open('/sys/kernel/mm/transparent_hugepage/enabled')",
        "open('/dev/urandom')",
        "open('/dev/kmsg')",
        "open('/dev/tty')",
        "open(sys.executable, 'rb')",
        "from sklearn.datasets import load_breast_cancer; load_breast_cancer()",
        "from sklearn.datasets import fetch_openml; fetch_openml(data_id=11)",
    ),
    _denied(
        "look_around",
        "os.listdir('/')",
        "os.listdir(CANARY)",
        "list(os.scandir('/tmp'))",
        "os.stat(CANARY + '/secret')",
        "os.lstat('/etc/passwd')",
        "os.statvfs('/')",
        "os.readlink('/proc/self/exe')",
        "os.getxattr(CANARY + '/secret', 'user.x')",
        "assert os.path.exists(CANARY + '/secret')",
        "assert os.access(CANARY + '/secret', os.F_OK)",
        "assert pathlib.Path('/etc/passwd').exists()",
        "next(pathlib.Path('/').iterdir())",
        "check(libc.inotify_init())",
    ),
    _denied(
        "write",
        "open(CANARY + '/secret', 'w')",
        "open(CANARY + '/secret', 'a')",
        "open(CANARY + '/new', 'x')",
        "open('/tmp/etpo-breach', 'w')",
        "open('/dev/shm/etpo-breach', 'w')",
        "open('etpo-breach', 'w')",
        "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
        "tempfile.TemporaryFile()",
        "tempfile.mkdtemp()",
        "import numpy; numpy.save(CANARY + '/new', [1])",
        "import joblib; joblib.dump([1], CANARY + '/new')",
        "import sqlite3; sqlite3.connect(CANARY + '/new').execute('create table t (x)')",
        "import shutil; shutil.rmtree(CANARY)",
    ),
    _denied(
        "change_files",
        "os.mkdir(CANARY + '/new')",
        "os.rmdir(CANARY)",
        "os.unlink(CANARY + '/secret')",
        "os.rename(CANARY + '/secret', CANARY + '/new')",
        "os.link(CANARY + '/secret', CANARY + '/new')",
        "os.symlink('/', CANARY + '/new')",
        "os.mkfifo(CANARY + '/new')",
        "os.mknod(CANARY + '/new')",
        "os.truncate(CANARY + '/secret', 0)",
        "os.chmod(CANARY + '/secret', 0)",
        "os.chown(CANARY + '/secret', os.getuid(), os.getgid())",
        "os.utime(CANARY + '/secret', (0, 0))",
        "os.setxattr(CANARY + '/secret', 'user.x', b'1')",
        "check(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))",
        "check(libc.umount2(b'/', 2))",
    ),
    _denied(
        "inherited_descriptors",
        "[os.fchdir(fd) for fd in range(3, 64) if os.get_inheritable(fd) is not None]",
        "assert any(os.read(fd, 1) for fd in (0, 1, 2))",
        "os.fchmod(1, 0o777)",
        "os.utime(1)",
        "os.ftruncate(1, 0)",
        "import fcntl; fcntl.fcntl(1, fcntl.F_SETFL, os.O_APPEND)",
        "import fcntl; fcntl.flock(1, fcntl.LOCK_EX)",
        "import fcntl; fcntl.lockf(1, fcntl.LOCK_EX)",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "import fcntl; fcntl.fcntl(0, 1024, 0)",  # F_SETLEASE
        "os.set_blocking(0, False)",
        "check(libc.fsetxattr(1, b'user.x', b'1', 1, 0))",
        "check(None if libc.lseek(1, 5, 0) != 5 else 5)",
    ),
    Attack(
        "extra_descriptors",
        """
import ctypes, os
def is_open(fd):
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True
others = [fd for fd in range(3, 4096) if is_open(fd)]
if len(others) != 1:
    raise RuntimeError(f'BREACH descriptors {others}')
""",
    ),
]

_ENVIRONMENT = [
    Attack(
        "environment",
        """
import ctypes, os
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
if any('etpo-secret' in value for value in os.environ.values()) or libc.getenv(b'ETPO_SECRET'):
    raise RuntimeError('BREACH environment')
if 'HOME' in os.environ or 'PATH' in os.environ:
    raise RuntimeError('BREACH the environment is not empty')
""",
    ),
    Attack(
        "command_line",
        """
import sys
if 'etpo-secret' in ' '.join([*sys.argv, *sys.orig_argv, *sys.path]):
    raise RuntimeError('BREACH command line')
""",
    ),
]

_NETWORK = [
    _denied(
        "sockets",
        "socket.create_connection(('127.0.0.1', TCP), timeout=1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
        "socket.socket(socket.AF_INET6, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_UNIX).connect(UNIX)",
        "socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK
        "socket.socket(38, socket.SOCK_SEQPACKET)",  # AF_ALG
        "socket.socketpair()",
        "socket.create_server(('127.0.0.1', 0))",
        "socket.getaddrinfo('localhost', 80) and socket.getaddrinfo('example.com', 80)",
        "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{TCP}', timeout=1)",
    ),
    _denied(
        "own_connection",
        # The connection to the trusted side can carry bytes and nothing else.
        "socket.socket(fileno=connection)",
        "check(libc.setsockopt(connection, 1, 7, ctypes.byref(ctypes.c_int(1 << 24)), 4))",
        "check(libc.getsockname(connection, ctypes.create_string_buffer(128), size))",
        "check(libc.listen(connection, 1))",
        "check(libc.sendmsg(connection, ctypes.create_string_buffer(256), 0))",
        "check(libc.recvmsg(connection, ctypes.create_string_buffer(256), 0))",
        "check(libc.shutdown(connection, 2))",
        prelude="""
def is_open(fd):
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True
connection = [fd for fd in range(3, 4096) if is_open(fd)][0]
size = ctypes.byref(ctypes.c_int(128))
""",
    ),
]

_PROCESSES = [
    _denied(
        "processes",
        "os.fork() or os._exit(0)",
        "os.forkpty()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['true'])",
        "check(None if os.system('true') else 0)",
        "os.popen('true').read()",
        "check(libc.fork())",
        "check(libc.syscall(CLONE, 17, 0, 0, 0, 0))",  # with SIGCHLD: a fork
        "check(libc.syscall(CLONE, 0x100, 0, 0, 0, 0))",  # sharing memory: a vfork
        "check(libc.syscall(CLONE, 0x10010000, 0, 0, 0, 0))",  # with a user namespace
        "check(libc.unshare(0x10000000))",
        "check(libc.setns(0, 0))",
        "import multiprocessing as m; p = m.Process(target=int); p.start()",
        "from concurrent.futures import ProcessPoolExecutor as P; P(1).submit(int).result(1)",
        "os.setsid()",
        "os.setpgid(0, 0)",
    ),
    _denied(
        "signals",
        "os.kill(os.getppid(), 0)",
        "os.kill(PID, 0)",
        "os.kill(1, 0)",
        "os.kill(-1, 0)",
        "os.kill(0, 0)",
        "os.killpg(os.getpgid(0), 0)",
        "os.pidfd_open(os.getppid())",
        "check(libc.tgkill(PID, PID, 0) if hasattr(libc, 'tgkill') else None)",
        "check(libc.sigqueue(PID, 0, None))",
        "check(libc.prctl(1, 0, 0, 0, 0))",  # PR_SET_PDEATHSIG
    ),
    _denied(
        "other_processes",
        "check(libc.ptrace(0, 0, 0, 0))",
        "check(libc.ptrace(16, PID, 0, 0))",
        "check(libc.ptrace(0x4206, os.getppid(), 0, 0))",
        "check(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))",
        "check(libc.process_vm_writev(PID, None, 0, None, 0, 0))",
        "os.sched_setaffinity(PID, {0})",
        "os.sched_setaffinity(0, {0})",
        "os.setpriority(os.PRIO_PROCESS, PID, 19)",
        "os.setpriority(os.PRIO_USER, 0, 19)",
        "os.nice(-5)",
        "os.nice(1)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        "import resource; resource.prlimit(PID, resource.RLIMIT_NOFILE, (9, 9))",
        "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    ),
    _denied(
        "shared_memory",
        "check(libc.shmget(0x45545031, 4096, 0o1666))",
        "check(libc.shm_open(b'/etpo-breach', 66, 0o666))",
        "check(libc.sem_open(b'/etpo-breach', 64, 0o666, 1) or None)",
        "check(libc.msgget(0x45545031, 0o1666))",
        "check(libc.semget(0x45545031, 1, 0o1666))",
        "check(libc.mq_open(b'/etpo-breach', 66, 0o666, None))",
        "os.memfd_create('x')",
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory('x', True, 64)",
        "import multiprocessing; multiprocessing.Lock()",
        "os.pipe()",
        "os.eventfd(0)",
        "import select; select.epoll()",
    ),
    _denied(
        "kernel_interfaces",
        "check(libc.prctl(22, 2, None, 0, 0))",  # PR_SET_SECCOMP
        "check(libc.prctl(4, 1, 0, 0, 0))",  # PR_SET_DUMPABLE
        "check(libc.personality(0x0040000))",
        "check(libc.sysinfo(ctypes.create_string_buffer(512)))",
        "check(libc.mlockall(1))",
        "check(libc.sethostname(b'x', 1))",
        "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
        "import mmap; mmap.mmap(-1, 2 << 20, flags=0x40022)",  # MAP_HUGETLB
    ),
    _denied(
        "privileges",
        "os.setuid(0) if os.getuid() else check(None)",
        "os.setresuid(0, 0, 0)",
        "os.setgroups([0])",
        "os.setgid(0) if os.getgid() else check(None)",
        "import resource as r; r.setrlimit(r.RLIMIT_CPU, (999, 999))",
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))",
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (8, 8))",
        "assert ctypes.CDLL(None).getuid() == 0",
    ),
    Attack(
        "every_system_call",
        # Arguments are zero: should a wall be missing, little happens but this report.
        """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in range(1024):
    if number in ALLOWED or number in (335, 336):
        continue  # the last two: the kernel's own uretprobe and uprobe, which filters do not see
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    expected = errno.ENOSYS if number == 435 else errno.EPERM
    if result != -1 or ctypes.get_errno() != expected:
        raise RuntimeError(f'BREACH system call {number}: {result}, errno {ctypes.get_errno()}')
""",
    ),
]

_LABELS = [
    Attack(
        "search_for_labels",
        # The trusted side's arrays would show as integers, one for each validation row.
        """
import gc, sys
import numpy as np
def breach_if_labels(value):
    if isinstance(value, np.ndarray) and value.dtype.kind in 'iu' and value.size == ROWS:
        raise RuntimeError('BREACH labels')
frame = sys._getframe()
while frame is not None:
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        breach_if_labels(value)
    frame = frame.f_back
for item in gc.get_objects():
    breach_if_labels(item)
    for referent in gc.get_referents(item):
        breach_if_labels(referent)
""",
    ),
    Attack(
        "search_for_the_scorer",
        f"""
import gc, sys
found = {{type(item).__name__ for item in gc.get_objects()}} & {_TRUSTED_CLASSES}
for name in sys.modules:
    room = name.split('.')[:2]
    if room[0] in ('jax', 'etpo_jax', 'models') or room[0] == 'env' and room[1:] != ['sandbox']:
        found.add(name)
if found - {{'env'}}:
    raise RuntimeError(f'BREACH {{found}}')
""",
    ),
    Attack(
        "validation_features_before_the_fit",
        """
import gc
import numpy as np
for item in gc.get_objects():
    for value in [item, *gc.get_referents(item)]:
        if isinstance(value, np.ndarray) and value.shape == (ROWS, x_train.shape[1]):
            raise RuntimeError('BREACH validation features')
""",
    ),
]

# Ways to remember something from one split, or one execution, to the next.
MEMORY = """
import builtins, fcntl, os, socket, sys, tempfile
import numpy as np
import sklearn
def attempt(action):
    try:
        return action()
    except Exception:
        return None
stores = [np.__dict__, sklearn.__dict__, builtins.__dict__, sys.__dict__, sys.modules]
known = {}
for store in stores:
    known.update(store.get('etpo_memory') or {})
for folder in FOLDERS:
    known.update(attempt(lambda: eval(open(folder + '/etpo-memory').read())) or {})
    for name in attempt(lambda: os.listdir(folder)) or []:
        row, _, label = name.partition('_')
        attempt(lambda: known.update({bytes.fromhex(row): int(label)}))
known.update(attempt(lambda: eval(os.environ['etpo_memory'])) or {})
for row, label in zip(x_train, y_train):
    known[row.tobytes()] = int(label)
for store in stores:
    store['etpo_memory'] = known
for folder in FOLDERS:
    attempt(lambda: open(folder + '/etpo-memory', 'w').write(repr(known)))
    # Files of any size may be forbidden; a name is enough.
    attempt(lambda: [open(f'{folder}/{row.hex()}_{known[row]}', 'w').close() for row in known])
attempt(lambda: os.environ.__setitem__('etpo_memory', repr(known)))
attempt(lambda: sys.modules['gc'].freeze())
class Memory:
    def predict_proba(self, x):
        p = np.full((len(x), 2), 0.5)
        for i, row in enumerate(x):
            if row.tobytes() in known:
                p[i] = 0
                p[i, known[row.tobytes()]] = 1
        return p
model = Memory()
"""

_LIMITS = [
    Attack("flood_objects", "x = [0] * (1 << 34)", "^MemoryError"),
    Attack("flood_array", "x = np.ones(1 << 34)", "^MemoryError"),
    Attack(
        "flood_slowly",
        "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
        "^(MemoryError|TimeoutError)",
        True,
    ),
    Attack(
        "flood_malloc",
        """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(1 << 12):
    block = libc.malloc(ctypes.c_size_t(1 << 24))
    if not block:
        raise MemoryError('malloc refuses')
    ctypes.memset(block, 1, 4096)
""",
        "^MemoryError",
    ),
    Attack(
        "flood_shared_mapping",
        "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(1 << 10)]",
        "^(MemoryError|OSError)",
    ),
    Attack(
        "flood_threads",
        """
import threading
threading.stack_size(32768)
event = threading.Event()
for _ in range(100_000):
    threading.Thread(target=event.wait, daemon=True).start()
""",
        "^(RuntimeError: can't start new thread|TimeoutError)",
        True,
    ),
    Attack(
        "flood_descriptors",
        "import os\nfor _ in range(10_000):\n    os.dup(1)",
        "^OSError",
    ),
    Attack(
        "flood_output",
        "while True:\n    print('x' * 10**6)",
        "^OSError: the program printed more than 16777216 bytes$",
    ),
    Attack(
        "flood_output_and_go_on",
        "import sys\nfor _ in range(30):\n    try:\n        sys.stderr.write('x' * 10**6)\n"
        "    except OSError:\n        pass",
        "^OSError: the program printed more than 16777216 bytes$",
    ),
    Attack(
        "flood_output_descriptors",
        "import os\nwhile True:\n    os.write(1, bytes(10**6)); os.write(2, bytes(10**6))",
        "^TimeoutError",
        True,
    ),
    Attack("loop", "while True: pass", "^TimeoutError", True),
    Attack("loop_in_c", "x = 7 ** (10 ** 9)", "^(TimeoutError|MemoryError)", True),
    Attack(
        "loop_in_regex",
        "import re\nre.match('(a|a)*b', 'a' * 60)",
        "^TimeoutError",
        True,
    ),
    Attack(
        "loop_in_lapack",
        "x = np.random.rand(1500, 1500)\nwhile True:\n    np.linalg.svd(x)",
        "^TimeoutError",
        True,
    ),
    Attack("sleep", "import time\ntime.sleep(1e6)", "^TimeoutError", True),
    Attack(
        "deadlock",
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
        "^TimeoutError",
        True,
    ),
    Attack(
        "stop_oneself",
        "import signal\nsignal.raise_signal(signal.SIGSTOP)",
        "^PermissionError",
    ),
    Attack(
        "ignore_all_signals",
        """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True: pass
""",
        "^TimeoutError",
        True,
    ),
    Attack(
        "swallow_everything",
        """
while True:
    try:
        while True: pass
    except BaseException:
        pass
""",
        "^TimeoutError",
        True,
    ),
    Attack(
        "busy_threads",
        """
import threading
def spin():
    while True: pass
for _ in range(8):
    threading.Thread(target=spin).start()
while True: pass
""",
        "^TimeoutError",
        True,
    ),
    Attack(
        "hang_in_predict",
        """
class Model:
    def predict_proba(self, x):
        while True: pass
model = Model()
""",
        "^TimeoutError",
        True,
    ),
    Attack("recursion", "def f(): return f()\nf()", "^RecursionError"),
    Attack(
        "deep_recursion",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "^(RecursionError|MemoryError|SystemError|TimeoutError)",
        True,
    ),
    Attack(
        "recursion_in_c",
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        "^(RecursionError|MemoryError|SystemError|TimeoutError)",
        True,
    ),
    Attack(
        "compile_nested", "x = " + "(" * 20_000 + ")" * 20_000, "^(SyntaxError|MemoryError|Rec|Sys)"
    ),
    Attack(
        "compile_unary", "x = " + "-" * 100_000 + "1", "^(MemoryError|RecursionError|SystemError|S)"
    ),
    Attack(
        "compile_sum", "x = " + "1+" * 100_000 + "1", "^(MemoryError|RecursionError|SystemError)"
    ),
    Attack("compile_constants", "x = 'a' * 10**9 * 10**9 + str(2 ** 10**8 ** 3)", "Error", True),
    Attack("compile_null_byte", "x = '\0'", "^(SyntaxError|ValueError)"),
    Attack("compile_unterminated", 'x = """', "^SyntaxError"),
    Attack("compile_unicode", "import os; ｏｓ.ｆｏｒｋ()", "^PermissionError"),
    Attack("compile_rot13", "# -*- coding: rot13 -*-\nvzcbeg bf", "^(SyntaxError|NameError)"),
]

_ENDINGS = [
    Attack("os_exit_0", "import os\nos._exit(0)", "^SystemExit"),
    Attack("os_exit_1", "import os\nos._exit(1)", "^SystemExit"),
    Attack("system_exit", "raise SystemExit(0)", "^SystemExit"),
    Attack("sys_exit_text", "import sys\nsys.exit('bye')", "^SystemExit: bye"),
    Attack("keyboard_interrupt", "raise KeyboardInterrupt", "^KeyboardInterrupt"),
    Attack("generator_exit", "raise GeneratorExit", "^GeneratorExit"),
    Attack("abort", "import os\nos.abort()", "^SystemError: the program crashed with SIGABRT"),
    Attack("null_pointer", "import ctypes\nctypes.string_at(0)", "^SystemError: .*SIGSEGV"),
    Attack(
        "kill_oneself",
        "import signal\nsignal.raise_signal(signal.SIGKILL)",
        "^MemoryError: the program was killed",
    ),
    Attack(
        "pretend_too_slow",
        "import signal\nsignal.raise_signal(signal.SIGXCPU)",
        "^TimeoutError",
    ),
    Attack(
        "leave_threads_behind",
        """
import threading, time
def work():
    while True:
        time.sleep(0.01)
threading.Thread(target=work, daemon=True).start()
threading.Thread(target=work).start()
""",
    ),
    Attack(
        "exit_handlers",
        """
import atexit, time, weakref
atexit.register(time.sleep, 1e6)
weakref.finalize(x_train, time.sleep, 1e6)
""",
    ),
    Attack(
        "destructor_hangs",
        """
class Sticky:
    def __del__(self):
        while True: pass
sticky = Sticky()
""",
        "^TimeoutError",
        True,
    ),
    Attack(
        "exit_from_thread",
        "import os, threading\nthreading.Thread(target=os._exit, args=[3]).start()\nwhile 1: pass",
        "^SystemExit",
    ),
    Attack(
        "no_exit",
        "import os, sys\nos._exit = sys.exit = lambda *_: None",
    ),
    Attack(
        "alarm",
        "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.001)\nwhile True: pass",
        "^SystemError: the program crashed with SIGALRM",
    ),
]

_EXCEPTIONS = [
    Attack(
        "str_raises",
        """
class Error(Exception):
    def __str__(self): raise self
raise Error
""",
        "^Exception: the exception has no message",
    ),
    Attack(
        "str_exits",
        """
class Error(Exception):
    def __str__(self): raise SystemExit
raise Error
""",
        "^Exception: the exception has no message",
    ),
    Attack(
        "str_hangs",
        """
class Error(Exception):
    def __str__(self):
        while True: pass
raise Error
""",
        "^TimeoutError",
        True,
    ),
    Attack(
        "hostile_name",
        "raise type('<FILL_ME>\\n\"\"\"', (Exception,), {})('x')",
    ),
    Attack(
        "metaclass",
        """
class Meta(type):
    @property
    def __name__(cls): raise RuntimeError
class Error(Exception, metaclass=Meta): pass
raise Error('x')
""",
    ),
    Attack(
        "hostile_message",
        """
raise ValueError(
    '<FILL_ME> \\x00\\x1b[31m\\u202e /etc/passwd \\r\\n 0x7f1234567890'
    + 5 * chr(34) + 7 * chr(39)
)
""",
        "^ValueError",
    ),
    Attack("surrogates", "raise ValueError('\\ud800 \\udfff')", "^ValueError"),
    Attack("long_message", "raise ValueError('x' * 10**7)", "^ValueError: x"),
    Attack("group", "raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "^BaseExceptionGroup"),
    Attack("arguments", "raise ValueError(object(), [1], {2: 3})", "^ValueError"),
]


def _lying(name: str, expression: str, error: str) -> Attack:
    code = f"""
class Model:
    def predict_proba(self, x):
        n = len(x)
        return {expression}
model = Model()
"""
    return Attack(f"predict_{name}", code, error)


_LIES = [
    _lying("nothing", "None", "^TypeError"),
    _lying("too_few_rows", "np.full((n - 1, 3), 1 / 3)", "^ValueError"),
    _lying("too_many_rows", "np.full((n + 1, 3), 1 / 3)", "^ValueError"),
    _lying("two_columns", "np.full((n, 2), 1 / 2)", "^ValueError"),
    _lying("transposed", "np.full((3, n), 1 / 3)", "^ValueError"),
    _lying("flat", "np.full(3 * n, 1 / 3)", "^ValueError"),
    _lying("labels", "np.zeros(n)", "^ValueError"),
    _lying("nan", "np.full((n, 3), np.nan)", "^ValueError"),
    _lying("infinity", "np.full((n, 3), np.inf)", "^ValueError"),
    _lying("no_probabilities", "np.random.rand(n, 3)", "^ValueError"),
    _lying("strings", "np.full((n, 3), '0.33')", "^TypeError"),
    _lying("objects", "np.full((n, 3), 1 / 3).astype(object)", "^TypeError"),
    _lying("complex", "np.full((n, 3), 1j)", "^TypeError"),
    _lying("dates", "np.zeros((n, 3), 'M8[s]')", "^TypeError"),
    _lying("structure", "np.zeros((n, 3), [('a', float)])", "^TypeError"),
    _lying("generator", "([1 / 3] * 3 for _ in range(n))", "^TypeError"),
    _lying("ragged", "[[1.0], [0.5, 0.5]]", "^ValueError"),
    _lying("empty", "np.zeros((0, 3))", "^ValueError"),
    _lying("huge_view", "np.broadcast_to(1 / 3, (1 << 40, 3))", "^ValueError"),
    _lying("huge_array", "np.ones((1 << 28, 3))", "^MemoryError"),
    _lying("sparse", "__import__('scipy.sparse').sparse.eye(n, 3)", "^TypeError"),
    _lying("right_class_names", "np.eye(3)[np.zeros(n, int)].tolist()", ""),
    Attack(
        "predict_array_hooks",
        """
class Lie(np.ndarray):
    shape = property(lambda self: (n_rows, 3))
    def __array_finalize__(self, source): pass
    def reshape(self, *_): return self
class Model:
    def predict_proba(self, x):
        global n_rows
        n_rows = len(x)
        return np.zeros(1).view(Lie)
model = Model()
""",
        "Error",
    ),
    Attack(
        "predict_wrong_bytes",
        """
class Fake:
    shape = (ROWS, 3)
    dtype = np.dtype(float)
    def __array__(self, *_, **__): return np.zeros(5)
class Model:
    def predict_proba(self, x): return Fake()
model = Model()
""",
        "^ValueError",
    ),
    Attack(
        "predict_changes_input",
        """
class Model:
    def predict_proba(self, x):
        x[:] = 0
        x.resize((0, 0), refcheck=False)
        return np.full((ROWS, 3), 1 / 3)
model = Model()
""",
    ),
    Attack("no_model", "model = None", "^AttributeError"),
    Attack("model_is_class", "from sklearn.svm import SVC\nmodel = SVC", "Error"),
    Attack("generator_function", "yield\nmodel = 1", "^AttributeError"),
    Attack(
        "async_function",
        "return 1\n\nasync def build_model(x_train, y_train):\n    model = 1",
        "^AttributeError",
        is_raw=True,
    ),
    Attack(
        "other_signature",
        "return 1\n\ndef build_model():\n    model = 1",
        "^TypeError",
        is_raw=True,
    ),
    Attack(
        "model_attributes_raise",
        """
class Model:
    def __getattribute__(self, name): raise SystemExit(name)
model = Model()
""",
        "^SystemExit",
    ),
    Attack(
        "pickle_bomb",
        """
import os
class Bomb(float):
    def __reduce__(self):
        return os.system, ('touch ' + CANARY + '/new',)
class Model:
    def predict_proba(self, x):
        p = np.full((len(x), 3), 1 / 3).astype(object)
        p[0, 0] = Bomb(1 / 3)
        return p
    def __reduce__(self):
        return os.system, ('touch ' + CANARY + '/new',)
model = Model()
""",
        "^TypeError",
    ),
]

_FIND_CONNECTION = """
import os, socket
def is_open(fd):
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True
fd = [fd for fd in range(3, 4096) if is_open(fd)][0]
def send(kind, data=b'', length=None):
    length = len(data) if length is None else length
    os.write(fd, kind + length.to_bytes(8, 'little') + data)
"""


def _forging(
    name: str,
    code: str,
    error: str = "^(RuntimeError: .* touched the connection|SystemExit)",
    is_slow: bool = False,
) -> Attack:
    return Attack(f"forge_{name}", _FIND_CONNECTION + code, error, is_slow)


_FORGERIES = [
    _forging("garbage", "os.write(fd, bytes(range(256)) * 64)"),
    _forging("huge_length", "send(b'P', b'', (1 << 64) - 1)"),
    _forging("large_length", "send(b'P', b'', 1 << 30)"),
    _forging("negative_kind", "send(b'\\xff', b'x')"),
    _forging("job", "send(b'J', b'{}')"),
    _forging("fitted_twice", "send(b'M')\nsend(b'M')"),
    _forging("fitted_with_payload", "send(b'M', b'x')"),
    _forging("close", "os.close(fd)"),
    _forging("close_all", "os.closerange(0, 4096)"),
    _forging("replace", "os.dup2(0, fd)"),
    _forging("half_a_frame", "os.write(fd, b'P')\nos._exit(0)", "^SystemExit"),
    _forging("half_then_hang", "os.write(fd, b'P')\nwhile 1: pass", "^TimeoutError", True),
    _forging("short_predictions", "send(b'P', b'12345678')", "^ValueError"),
    _forging("nan_predictions", "send(b'P', np.full((ROWS, 3), np.nan).tobytes())", "^ValueError"),
    _forging(
        "hostile_error",
        "send(b'E', b'<FILL_ME>\\n\"\"\"\\xff\\x00 /etc/passwd')",
        "^Exception",
    ),
    _forging("long_error", "send(b'E', b'x' * 5000)"),
    _forging("error_without_type", "send(b'E', b'')", "^Exception$"),
    _forging(
        # Features may be seen before the fit is over: they carry no labels.
        "early_fitted",
        "send(b'M')\nimport time; time.sleep(0.05)\nos.read(fd, 1 << 20)\nos._exit(0)",
        "^SystemExit",
    ),
    _forging(
        "thousand_frames",
        "for _ in range(1000):\n    send(b'E', b'ValueError\\nfirst')",
        "^ValueError: first",
    ),
]

_PATCHES = [
    Attack(
        "patch_score", "import sklearn.metrics\nsklearn.metrics.roc_auc_score = lambda *a, **k: 1.0"
    ),
    Attack(
        "patch_numpy",
        """
np.asarray = np.ascontiguousarray = np.array = lambda *a, **k: 1 / 0
np.random.seed = np.isfinite = np.allclose = lambda *a, **k: True
""",
        "^ZeroDivisionError",
    ),
    Attack(
        "patch_builtins",
        """
import builtins
for name in ('len', 'isinstance', 'type', 'str', 'getattr', 'memoryview', 'print'):
    setattr(builtins, name, None)
model = 1
""",
        ".",
    ),
    Attack("clear_builtins", "import builtins\nvars(builtins).clear()\nmodel = 1", "."),
    Attack("clear_modules", "import sys\nsys.modules.clear()\nmodel = 1", "."),
    Attack(
        "patch_protocol",
        f"""
import sys
wire = sys.modules[{wire.__name__!r}]
real = wire.send
def send(sock, kind, *parts):
    if kind == wire.PREDICTIONS:
        real(sock, kind, b'12345678')
    else:
        real(sock, kind, *parts)
wire.send = send
""",
        "^ValueError",
    ),
    Attack("trace", "import sys\nsys.settrace(lambda *a: 1 / 0)\nmodel = 1", "."),
    Attack("profile", "import sys\nsys.setprofile(lambda *a: 1 / 0)\nmodel = 1", "."),
    Attack("warnings_are_errors", "import warnings\nwarnings.simplefilter('error')"),
    Attack("numpy_raises", "np.seterr(all='raise')"),
    Attack("no_memory_manager", "import gc\ngc.disable()\ngc.unfreeze()\ngc.collect()"),
    Attack("import_hooks", "import sys\nsys.meta_path.clear()\nsys.path.clear()\nimport json"),
    Attack(
        "code_after_the_function",
        "return 1\n\nimport os\nos._exit(7)\ndef f():\n    model = 1",
        "^SystemExit: .* code 7",
        is_raw=True,
    ),
    Attack(
        "overwrite_training_data",
        "x_train[:] = 0\ny_train[:] = 0\ny_train[: len(y_train) // 2] = 1\ny_train[0] = 2",
    ),
]

ATTACKS = [
    *_FILES,
    *_ENVIRONMENT,
    *_NETWORK,
    *_PROCESSES,
    *_LABELS,
    *_LIMITS,
    *_ENDINGS,
    *_EXCEPTIONS,
    *_LIES,
    *_FORGERIES,
    *_PATCHES,
]

# Runs in a container: reads all files of a list again and again, compares each
# with its SHA-256, and prints what came of it.
import errno, hashlib, sys, time

root, passes = sys.argv[1], int(sys.argv[2])
want = []
for line in open("/expected"):
    sum, path = line.rstrip("\n").split("  ", 1)
    want.append((path, sum))
print("started", len(want), flush=True)
for n in range(passes):
    worst = 0.0
    for path, sum in want:
        h = hashlib.sha256()
        try:
            began = time.monotonic()
            with open(path, "rb", buffering=0) as f:
                while True:
                    b = f.read(1 << 17)
                    now = time.monotonic()
                    worst, began = max(worst, now - began), now
                    if not b:
                        break
                    h.update(b)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            print("failed", path, flush=True)
            time.sleep(0.001)  # until somebody serves again
            continue
        if h.hexdigest() != sum:
            print("wrong", path, flush=True)
    print("pass", n, "stall", worst, flush=True)

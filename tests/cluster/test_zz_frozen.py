import time
from tests.cluster.test_faults import *
def test_frozen(setting):
    hub=setting.hub
    d=hub.start("dispatcher","--watch").ready()
    a=hub.submit(300, runs_s=2)
    d.says(f"running run={a} ")
    setting.storage.freeze()
    ids=[hub.submit(301+n) for n in range(12)]
    time.sleep(15)
    print(d.said())
    assert "lease lost" not in d.said() and "adopted" not in d.said()
    t=time.monotonic(); assert d.terminate()==0; print("TERM", time.monotonic()-t)
    setting.storage.freeze(False); setting.storage.cut()
    with dispatcher_of(hub) as d2:
        for n in range(12): hub.wait_graded(301+n)
        hub.wait_graded(300)
        hub.check_graded_once([a,*ids])
        print([(r["run_id"],r["attempt"],r["failures"]) for r in hub.store.table("runs")])
        hub.await_tidiness()
    print(d2.said()[-3000:])

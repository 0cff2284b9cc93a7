import asyncio, sys, time, kvmdbg
sys.path.insert(0, ".")
from tests.support import demo
from tests.nested.test_patching import SITES
async def main():
    t=time.time()
    def say(*a): print(f"{time.time()-t:.1f}", *a, flush=True)
    async with kvmdbg.open("demo", accel="kvm", instance="probe", overrides={"cpus":2}, run=True) as vm:
        vm.time_scale=6
        await demo.booted(vm); say("booted", vm.status.accel, vm.status.engine)
        await vm.pause()
        for n, name in enumerate(SITES):
            await vm.breakpoint(name)
            seen={}
            for _ in range(12):
                await vm.resume()
                try: s=await vm.wait_stop(10)
                except Exception as e:
                    say("NO STOP", name, e, vm.notices); print(await vm.monitor("breakpoints"));print(await vm.monitor("info registers")); break
                seen[str(s.reason)[:60]+str(s.vcpu)]=seen.get(str(s.reason)[:60]+str(s.vcpu),0)+1
            say(name, seen, vm.notices)
        say(await vm.monitor("breakpoints"))
        await vm.quit()
asyncio.run(main())

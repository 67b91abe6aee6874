// The best variant of the CPU kernels that this processor can run: its name in build.VARIANTS.
//
// This is a library of its own, compiled for the oldest processor: a variant may use its instructions as soon as
// it is loaded. The compiler's test asks the processor and whether the system saves the registers.
extern "C" __attribute__((visibility("default"))) const char* occfast_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("x86-64-v4")   ? "x86-64-v4"
         : __builtin_cpu_supports("x86-64-v3") ? "x86-64-v3"
         : __builtin_cpu_supports("x86-64-v2") ? "x86-64-v2"
                                               : "";
#elif defined(__aarch64__)
  return "armv8-a";
#else
  return "";
#endif
}

#include "tessera/ops/process.h"

#include <ATen/Parallel.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

namespace tessera {
namespace {

std::atomic<bool> g_owned{false};

}  // namespace

void own_process() { g_owned.store(true); }

int64_t n_threads() { return at::get_num_threads(); }

void keep_freed_memory() {
  if (!g_owned.load()) return;
  // What a step frees the next one wants again: without this glibc returns every larger array to
  // the system, and its pages come back one fault each.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);  // never
}

void use_threads(int64_t n) {
  if (!g_owned.load()) return;
  at::set_num_threads(n > 0 ? static_cast<int>(n)
                            : static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
}

void reset_peak_memory() {
  if (!g_owned.load()) return;
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
}

int64_t peak_rss_mb() {
  // Of this program alone: ru_maxrss begins at what the process held that started it.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes / 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

int64_t resident_mb() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  statm >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE) / (1 << 20);
}

}  // namespace tessera

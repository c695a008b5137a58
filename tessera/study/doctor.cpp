#include "tessera/study/doctor.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "tessera/base/files.h"
#include "tessera/base/version.h"
#include "tessera/ops/torch_version.h"

namespace tessera {
namespace {

/// The value of the first line "<key> ... : <value>" of a /proc file.
std::string proc_value(const char* path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (line.rfind(key, 0) != 0 || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string gigabytes(double bytes) { return fmt::format("{:.1f} GB", bytes / 1e9); }

Finding cpu() {
  std::string name = proc_value("/proc/cpuinfo", "model name");
  if (name.empty()) name = "unknown model";
  return {"cpu", fmt::format("{}, {} threads", name, std::thread::hardware_concurrency())};
}

Finding instructions(const Libtorch& torch) {
  Finding out{"instruction set", torch.instructions};
  if (torch.instructions == "DEFAULT") {
    out.found = "no AVX2";
    out.remedy = "works, but slowly: use a processor with AVX2 or AVX-512";
  }
  return out;
}

Finding memory() {
  const double total = std::strtod(proc_value("/proc/meminfo", "MemTotal").c_str(), nullptr) * 1024;
  double free = std::strtod(proc_value("/proc/meminfo", "MemAvailable").c_str(), nullptr) * 1024;
  double limit = 0;
  std::ifstream("/sys/fs/cgroup/memory.max") >> limit;
  std::string found = fmt::format("{} of {} free", gigabytes(free), gigabytes(total));
  if (limit > 0 && limit < total) {
    double used = 0;
    std::ifstream("/sys/fs/cgroup/memory.current") >> used;
    free = std::min(free, limit - used);
    found = fmt::format("{} of the {} that this container may use free", gigabytes(free),
                        gigabytes(limit));
  }
  if (total == 0) return {"memory", "not known"};
  const bool fit = free > 1e9;
  return {"memory", found, fit, fit ? "" : "close other programs: 1 GB must be free"};
}

Finding gpu(const Libtorch& torch) {
  if (torch.n_gpus > 0) return {"gpu", fmt::format("{} found", torch.n_gpus)};
  std::error_code ignored;
  if (fs::exists("/dev/nvidia0", ignored)) {
    return {"gpu", "found, but this libtorch is built for the CPU", true,
            "for CUDA: TESSERA_CUDA=ON tools/setup"};
  }
  return {"gpu", "none (not needed)"};
}

Finding libtorch(const Libtorch& torch) {
  const bool fit = !torch.blas.empty();
  return {"libtorch", fmt::format("{}, BLAS {}", torch_version(), fit ? torch.blas : "none"), fit,
          fit ? "" : "install a libtorch with BLAS: tools/setup"};
}

Finding disk() {
  std::error_code error;
  const auto here = fs::current_path(error);
  const auto space = fs::space(error ? "." : here, error);
  if (error) return {"disk", "not known"};
  const auto free = static_cast<double>(space.available);
  return {"disk", gigabytes(free) + " free here", free > 1e9,
          free > 1e9 ? "" : "make room or change to another folder: 1 GB must be free"};
}

Finding port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(8088);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool free =
      fd >= 0 && bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  if (fd >= 0) close(fd);
  return {"port 8088", free ? "free" : "in use", true,
          free ? "" : "end the program that listens there, or serve on another port"};
}

}  // namespace

std::vector<Finding> examine_machine() {
  const Libtorch torch = libtorch_here();
  return {{"tessera", kVersion},
          cpu(),
          instructions(torch),
          memory(),
          gpu(torch),
          libtorch(torch),
          {"openmp", fmt::format("{} threads", torch.n_threads)},
          disk(),
          {"parquet", "yes"},
          {"encoders", "tfidf, exec:COMMAND, pamd, r2mr; none for pictures or sound", true,
           "bring feature files and import them with the events"},
          port()};
}

Json findings_json(const std::vector<Finding>& findings) {
  const bool fit =
      std::all_of(findings.begin(), findings.end(), [](const Finding& f) { return f.fit; });
  Json out = {{"fit", fit}, {"checks", Json::array()}};
  for (const auto& one : findings) {
    out["checks"].push_back({{"what", one.what},
                             {"found", one.found},
                             {"fit", one.fit},
                             {"remedy", one.remedy.empty() ? Json() : Json(one.remedy)}});
  }
  return out;
}

}  // namespace tessera

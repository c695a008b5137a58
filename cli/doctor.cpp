#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <torch/cuda.h>
#include <torch/version.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cli/cli.h"
#include "tessera/base/files.h"
#include "tessera/base/version.h"

namespace tessera::cli {
namespace {

/// `fit` false makes the machine unfit; a remedy beside `fit` is advice.
struct Finding {
  std::string what, found;
  bool fit = true;
  std::string remedy = {};
};

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

Finding instructions() {
  const std::string capability = at::get_cpu_capability();
  Finding out{"instruction set", capability};
  if (capability == "DEFAULT") {
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

Finding gpu() {
  if (torch::cuda::is_available()) {
    return {"gpu", fmt::format("{} found", torch::cuda::device_count())};
  }
  std::error_code ignored;
  if (std::filesystem::exists("/dev/nvidia0", ignored)) {
    return {"gpu", "found, but this libtorch is built for the CPU", true,
            "for CUDA: TESSERA_CUDA=ON tools/setup"};
  }
  return {"gpu", "none (not needed)"};
}

Finding libtorch() {
  const std::string blas = at::hasMKL() ? "MKL" : at::hasLAPACK() ? "LAPACK" : "none";
  return {"libtorch", fmt::format("{}, BLAS {}", TORCH_VERSION, blas), blas != "none",
          blas != "none" ? "" : "install a libtorch with BLAS: tools/setup"};
}

Finding openmp() { return {"openmp", fmt::format("{} threads", at::get_num_threads())}; }

Finding disk() {
  std::error_code error;
  const auto here = std::filesystem::current_path(error);
  const auto space = std::filesystem::space(error ? "." : here, error);
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

void doctor(const Common& common) {
  const std::vector<Finding> findings = {
      {"tessera", kVersion},
      cpu(),
      instructions(),
      memory(),
      gpu(),
      libtorch(),
      openmp(),
      disk(),
      {"parquet", "yes"},
      {"encoders", "tfidf, exec:COMMAND, pamd, r2mr; none for pictures or sound", true,
       "bring feature files: import --feature image=FILE"},
      port()};
  std::vector<std::string> unfit;
  for (const auto& finding : findings) {
    if (!finding.fit) unfit.push_back(finding.what);
  }
  if (common.json) {
    Json out = {{"fit", unfit.empty()}, {"checks", Json::array()}};
    for (const auto& finding : findings) {
      out["checks"].push_back(
          {{"what", finding.what},
           {"found", finding.found},
           {"fit", finding.fit},
           {"remedy", finding.remedy.empty() ? Json(nullptr) : Json(finding.remedy)}});
    }
    print_json(out);
  } else {
    std::string out;
    for (const auto& finding : findings) {
      out += fmt::format("{:<8} {:<16} {}{}\n", finding.fit ? "fit" : "not fit", finding.what,
                         finding.found, finding.remedy.empty() ? "" : "; " + finding.remedy);
    }
    out += unfit.empty() ? "this machine is fit\n" : "this machine is not fit\n";
    print(out);
  }
  if (!unfit.empty()) {
    throw RunError(Exit::failed, fmt::format("not fit: {}; the remedy stands beside each",
                                             fmt::join(unfit, ", ")));
  }
}

}  // namespace

void add_doctor(CLI::App& app, Common& common) {
  add_verb(app, common, "doctor", "is this machine fit, and what to do if not", false,
           [&common] { doctor(common); });
}

}  // namespace tessera::cli

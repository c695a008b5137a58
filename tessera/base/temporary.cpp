#include "tessera/base/temporary.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <system_error>

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBootDigits = 16;
constexpr size_t kLongestName = 120, kLongestHost = 40;  // a file name has at most 255 bytes

bool all_of(std::string_view text, int (*holds)(int)) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [&](unsigned char c) { return holds(c) != 0; });
}

/// Names this start of this kernel: containers share it, other hosts and earlier starts have
/// another. Empty where it cannot be read.
std::string boot() {
  std::string id, digits;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  std::copy_if(id.begin(), id.end(), std::back_inserter(digits),
               [](unsigned char c) { return std::isxdigit(c) != 0; });
  return digits.size() >= kBootDigits ? digits.substr(0, kBootDigits) : "";
}

std::string host() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  std::string out = std::string(name.data()).substr(0, kLongestHost);
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '-');
  return out.empty() ? "unknown" : out;
}

std::string short_name(const fs::path& place) {
  return without_slash(place).filename().string().substr(0, kLongestName);
}

fs::path new_name(const fs::path& place) {
  uint32_t random = 0;
  if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
    throw std::system_error(errno, std::generic_category());
  }
  std::string start = boot();
  if (start.empty()) start.assign(kBootDigits, '0');
  return parent_of(place) /
         fmt::format(".{}.{}.{}.{}.{:08x}.tmp", short_name(place), host(), start, getpid(), random);
}

int open_any(const fs::path& path) {
  // For writing where that may be: NFS locks nothing else.
  const int fd = open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0 || errno != EISDIR) return fd;
  return open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/// Removes a temporary of this kernel unless its writer holds it. False where nobody can know.
bool remove_unless_held(const fs::path& path) {
  const int fd = open_any(path);
  if (fd < 0) return errno == ENOENT;
  // Removed while it is locked: a writer that has just made it sees that and makes another.
  std::error_code ignored;
  const bool dead = flock(fd, LOCK_EX | LOCK_NB) == 0;
  const bool known = dead || errno == EWOULDBLOCK;
  if (dead) fs::remove_all(path, ignored);
  close(fd);
  return known;
}

}  // namespace

fs::path without_slash(const fs::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

fs::path parent_of(const fs::path& path) {
  const fs::path parent = without_slash(path).parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

bool is_still(const fs::path& path, int fd) {
  struct stat named = {}, held = {};
  return stat(path.c_str(), &named) == 0 && fstat(fd, &held) == 0 && named.st_dev == held.st_dev &&
         named.st_ino == held.st_ino;
}

std::optional<TemporaryName> parse_temporary(std::string_view file) {
  if (!file.starts_with('.') || !file.ends_with(".tmp")) return std::nullopt;
  file = file.substr(1, file.size() - 5);
  std::array<std::string_view, 4> last;  // host, boot, pid, random
  std::string_view rest = file;
  for (size_t i = last.size(); i-- > 0;) {
    const size_t dot = rest.rfind('.');
    if (dot == std::string_view::npos) break;
    last[i] = rest.substr(dot + 1);
    rest = rest.substr(0, dot);
  }
  const auto& [of, start, pid, random] = last;
  if (!rest.empty() && !of.empty() && start.size() == kBootDigits && all_of(start, std::isxdigit) &&
      all_of(pid, std::isdigit) && random.size() == 8 && all_of(random, std::isxdigit)) {
    return TemporaryName{std::string(rest), std::string(of), std::string(start), std::string(pid)};
  }
  const size_t dot = file.rfind('.');
  if (dot == std::string_view::npos || dot == 0) return std::nullopt;
  const auto number = file.substr(dot + 1);
  if (number.size() > 9 || !all_of(number, std::isdigit)) return std::nullopt;
  return TemporaryName{std::string(file.substr(0, dot)), "", "", std::string(number)};
}

Temporary::Temporary(const fs::path& place, Kind kind) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    path_ = new_name(place);
    if (kind == Kind::folder) {
      if (mkdir(path_.c_str(), 0777) == 0) {
        fd_ = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd_ < 0 && errno == ENOENT) continue;  // taken for a leftover before it was locked
      }
    } else {
      fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (fd_ < 0 && errno == EEXIST) continue;
    if (fd_ < 0) throw std::system_error(errno, std::generic_category());
    // A file system without locks goes without: what lies there is then never taken for dead.
    const bool taken = flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!taken && is_still(path_, fd_)) return;
    close(fd_);
    fd_ = -1;
  }
  throw std::system_error(EEXIST, std::generic_category());
}

Temporary::~Temporary() {
  std::error_code ignored;
  if (!released_) fs::remove_all(path_, ignored);
  close(fd_);
}

std::vector<fs::path> remove_leftovers(const fs::path& place) {
  const std::string name = short_name(place), here = boot();
  std::error_code ignored;
  std::vector<fs::path> found, unknown;
  for (const auto& entry : fs::directory_iterator(parent_of(place), ignored)) {
    const auto parts = parse_temporary(entry.path().filename().string());
    if (parts && parts->name == name) found.push_back(entry.path());
  }
  for (const auto& path : found) {
    const auto parts = parse_temporary(path.filename().string());
    const bool of_here = !here.empty() && parts->boot == here;
    if (!of_here || !remove_unless_held(path)) unknown.push_back(path);
  }
  return unknown;
}

bool is_within_temporary(const fs::path& path) {
  const fs::path above = path.parent_path();
  return std::any_of(above.begin(), above.end(), [](const fs::path& part) {
    const auto found = parse_temporary(part.string());
    return found && !found->boot.empty();
  });
}

fs::path without_temporary(const fs::path& path) {
  fs::path out;
  for (const auto& part : path) {
    const auto found = parse_temporary(part.string());
    out /= found && !found->boot.empty() ? fs::path(found->name) : part;
  }
  return out;
}

}  // namespace tessera

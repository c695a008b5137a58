#include "tessera/base/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>

#include "tessera/base/error.h"
#include "tessera/base/temporary.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

/// "process 12 on host x", as its holder wrote it.
std::string holder_of(int fd) {
  std::array<char, 300> text{};
  const ssize_t n = pread(fd, text.data(), text.size(), 0);
  const std::string found(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
  const std::string line = found.substr(0, found.find('\n'));
  return line.empty() ? "another process" : printable(line, 300);
}

void write_holder(int fd) {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const std::string line = fmt::format("process {} on host {}\n", getpid(), host.data());
  // For people only: the lock holds without it.
  if (ftruncate(fd, 0) == 0) std::ignore = pwrite(fd, line.data(), line.size(), 0);
}

}  // namespace

FolderLock::FolderLock(const fs::path& folder, const Log& log) : file_(folder / kFile) {
  const auto failed = [&](int error) {
    return RunError(Exit::failed,
                    fmt::format("cannot write {}: {}", folder.string(), std::strerror(error)));
  };
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw failed(error.value());
  while (true) {
    fd_ = open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) throw failed(errno);
    int taken = 0;
    do {
      taken = flock(fd_, LOCK_EX | LOCK_NB);
    } while (taken != 0 && errno == EINTR);
    const int reason = errno;
    if (taken == 0 && is_still(file_, fd_)) break;
    if (taken != 0 && reason != EWOULDBLOCK) {
      log.warn("{} cannot be locked ({}): see to it that no other process writes there",
               folder.string(), std::strerror(reason));
      break;
    }
    const std::string holder = taken == 0 ? "" : holder_of(fd_);
    close(std::exchange(fd_, -1));
    if (taken != 0) {
      throw usage_error("{} is in use by {}: wait until it ends, or choose another folder",
                        folder.string(), holder);
    }
  }
  write_holder(fd_);
}

FolderLock::FolderLock(FolderLock&& other) noexcept
    : file_(std::move(other.file_)), fd_(std::exchange(other.fd_, -1)) {}

FolderLock::~FolderLock() {
  if (fd_ < 0) return;
  // Removed while it is held: whoever has opened it sees that and opens the next one.
  if (is_still(file_, fd_)) unlink(file_.c_str());
  close(fd_);
}

}  // namespace tessera

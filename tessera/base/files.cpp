#include "tessera/base/files.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <ctime>
#include <future>
#include <memory>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/base/sigpipe.h"
#include "tessera/base/stop.h"
#include "tessera/base/temporary.h"

namespace tessera {
namespace {

constexpr int kWait = 100;  // milliseconds between two looks at `stop_requested`

RunError write_failed(const fs::path& path, int error, bool unchanged = true) {
  // The name that the reader knows, not that of the folder it was being written in.
  const fs::path place = without_temporary(path);
  std::error_code ignored;
  const char* rest =
      unchanged && fs::exists(place, ignored) ? "; what was there before is unchanged" : "";
  return {Exit::failed,
          fmt::format("cannot write {}: {}{}", place.string(), std::strerror(error), rest)};
}

/// A file descriptor, closed at the end of the scope.
struct Descriptor {
  int fd = -1;
  explicit Descriptor(int open) : fd(open) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

/// All bytes from `fd` on, a piece at a time; throws errno.
void read_all(int fd, const std::function<void(std::string_view)>& use) {
  std::string buffer(1 << 20, '\0');
  while (true) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n == 0) return;
    if (n > 0) {
      use(std::string_view(buffer.data(), static_cast<size_t>(n)));
    } else if (errno != EINTR) {
      throw std::system_error(errno, std::generic_category());
    }
  }
}

void read_pieces(const fs::path& path, const std::function<void(std::string_view)>& use) {
  std::error_code error;
  if (fs::is_directory(path, error))
    throw data_error("{} is a folder, wanted a file", path.string());
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0) throw data_error("no file {}: {}", path.string(), std::strerror(errno));
  try {
    read_all(file.fd, use);
  } catch (const std::system_error& e) {
    throw data_error("cannot read {}: {}", path.string(), std::strerror(e.code().value()));
  }
}

/// Where an output goes. Links are followed, so that what they name is written and they stay.
struct Place {
  fs::path path;
  bool direct = false;  ///< a device or pipe: written to as it is
  int descriptor = -1;  ///< of this process, as /dev/stdout names one
};

bool is_in_proc(const fs::path& link) {
  struct statfs system = {};
  return statfs(parent_of(link).c_str(), &system) == 0 && system.f_type == PROC_SUPER_MAGIC;
}

Place place_of(const fs::path& path) {
  Place out{without_slash(path)};
  std::error_code error;
  for (int links = 0; links < 40 && fs::is_symlink(out.path, error); ++links) {
    if (is_in_proc(out.path)) {
      // Names an open file, not a path.
      out.direct = true;
      const std::string name = out.path.filename().string();
      const auto folder = fs::canonical(parent_of(out.path), error);
      if (folder == fs::path("/proc") / std::to_string(getpid()) / "fd") {
        std::from_chars(name.data(), name.data() + name.size(), out.descriptor);
      }
      return out;
    }
    const fs::path target = fs::read_symlink(out.path, error);
    if (error) break;
    out.path = without_slash(out.path.parent_path() / target);
  }
  if (fs::is_symlink(out.path, error)) throw write_failed(path, ELOOP, false);
  const auto kind = fs::status(out.path, error).type();
  out.direct = kind == fs::file_type::character || kind == fs::file_type::block ||
               kind == fs::file_type::fifo || kind == fs::file_type::socket;
  return out;
}

/// Writes what the stream is given; a failure is thrown out of the stream. A device or pipe is
/// written in steps that do not block for ever where nobody reads.
class Output : public std::streambuf {
 public:
  Output(int fd, const Place& place, const std::function<bool()>& stop_requested)
      : fd_(fd), place_(place), stop_requested_(stop_requested), buffer_(1 << 18) {
    setp(buffer_.data(), buffer_.data() + buffer_.size());
  }

 protected:
  int_type overflow(int_type c) override {
    sync();
    if (c != traits_type::eof()) sputc(traits_type::to_char_type(c));
    return traits_type::not_eof(c);
  }
  int sync() override {
    write_out(pbase(), static_cast<size_t>(pptr() - pbase()));
    setp(buffer_.data(), buffer_.data() + buffer_.size());
    return 0;
  }
  std::streamsize xsputn(const char* bytes, std::streamsize n) override {
    if (n < epptr() - pptr()) return std::streambuf::xsputn(bytes, n);
    sync();
    write_out(bytes, static_cast<size_t>(n));
    return n;
  }

 private:
  void write_out(const char* bytes, size_t n) {
    const SigpipeHeld held;
    while (n > 0) {
      end_if_stopped(stop_requested_, "interrupted");
      if (place_.direct && !has_room()) continue;
      const ssize_t done = write(fd_, bytes, place_.direct ? std::min(n, kPipe) : n);
      if (done < 0 && errno != EINTR && errno != EAGAIN) {
        throw write_failed(place_.path, errno, !place_.direct);
      }
      if (done <= 0) continue;
      bytes += done;
      n -= static_cast<size_t>(done);
    }
  }
  bool has_room() const {
    pollfd wait = {fd_, POLLOUT, 0};
    return poll(&wait, 1, kWait) > 0;
  }

  static constexpr size_t kPipe = 4096;  // a pipe that has room takes as much at once
  int fd_;
  const Place& place_;
  const std::function<bool()>& stop_requested_;
  std::vector<char> buffer_;
};

void write_to(int fd, const Place& place, const std::function<void(std::ostream&)>& write,
              const std::function<bool()>& stop_requested) {
  Output buffer(fd, place, stop_requested);
  std::ostream out(&buffer);
  out.exceptions(std::ios::badbit);
  write(out);
  out.flush();
}

void write_directly(const Place& place, const std::function<void(std::ostream&)>& write,
                    const std::function<bool()>& stop_requested) {
  const auto open_place = [&] {
    if (place.descriptor >= 0) return fcntl(place.descriptor, F_DUPFD_CLOEXEC, 0);
    return open(place.path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  };
  int fd = open_place();
  // A pipe without a reader yet: the one to wait for.
  while (fd < 0 && errno == ENXIO && fs::is_fifo(place.path)) {
    end_if_stopped(stop_requested, "interrupted");
    poll(nullptr, 0, kWait);
    fd = open_place();
  }
  if (fd < 0) throw write_failed(place.path, errno, false);
  const Descriptor file(fd);
  write_to(file.fd, place, write, stop_requested);
}

/// 0 or the error. What cannot be synced, as folders on some file systems, needs none.
int sync_fd(int fd) {
  if (fsync(fd) == 0 || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return 0;
  return errno;
}

void sync_path(const fs::path& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0 && errno == EACCES) return;  // a folder that one may write to, but not list
  const int error = file.fd < 0 ? errno : sync_fd(file.fd);
  if (error != 0) throw write_failed(path, error, false);
}

void find_all(const fs::path& folder, std::vector<fs::path>& files,
              std::vector<fs::path>& folders) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_symlink(error)) continue;
    if (entry->is_directory(error)) {
      find_all(entry->path(), files, folders);
    } else if (entry->is_regular_file(error)) {
      files.push_back(entry->path());
    }
  }
  if (error) throw write_failed(folder, error.value(), false);
  folders.push_back(folder);
}

/// Each file, then the folders: syncfs would write out everybody's pages. Several at once, which
/// the disk confirms together: a folder of 1,200 small files takes 3 s instead of 11.
void sync_tree(const fs::path& folder) {
  std::vector<fs::path> files, folders;
  find_all(folder, files, folders);
  std::atomic<size_t> next{0};
  const auto sync_some = [&] {
    for (size_t i = next++; i < files.size(); i = next++) sync_path(files[i]);
  };
  std::vector<std::future<void>> others;
  for (size_t t = 1; t < std::min<size_t>(8, files.size()); ++t) {
    others.push_back(std::async(std::launch::async, sync_some));
  }
  sync_some();
  for (auto& other : others) other.get();
  for (const auto& each : folders) sync_path(each);
}

/// A temporary beside `place`, for messages the output `path`.
std::unique_ptr<Temporary> begin(const fs::path& path, const fs::path& place,
                                 Temporary::Kind kind) {
  remove_leftovers(place);
  try {
    return std::make_unique<Temporary>(place, kind);
  } catch (const std::system_error& e) {
    throw write_failed(path, e.code().value());
  }
}

/// A file of a folder that is being written, which is made durable as a whole. A new file: the old
/// one may be a link to one that is kept.
void write_within(const Place& place, const std::function<void(std::ostream&)>& write,
                  const std::function<bool()>& stop_requested) {
  unlink(place.path.c_str());
  const Descriptor file(open(place.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.fd < 0) throw write_failed(place.path, errno);
  write_to(file.fd, place, write, stop_requested);
}

/// Where the old folder lies between the two renames of replace_folder.
fs::path aside_of(const fs::path& place) {
  return parent_of(place) / fmt::format(".{}.tessera-previous", place.filename().string());
}

bool lacks_exchange(int error) {
  return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP || error == EPERM;
}

/// Puts `made` at `place`, whatever lay there; 0 or the error. The old folder is then called
/// `made`, or aside_of(place) on a file system that cannot exchange.
int replace_folder(const fs::path& made, const fs::path& place) {
  std::error_code ignored;
  if (!fs::exists(place, ignored)) {
    if (rename(made.c_str(), place.c_str()) == 0) return 0;
    if (errno != ENOTEMPTY && errno != EEXIST) return errno;  // else somebody was faster
  }
  if (renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE) == 0) return 0;
  if (!lacks_exchange(errno)) return errno;
  const fs::path aside = aside_of(place);
  int error = 0;
  for (int attempt = 0; attempt < 10; ++attempt) {
    fs::remove_all(aside, ignored);  // `place` is whole, so this one is older
    if (rename(place.c_str(), aside.c_str()) != 0) return errno;
    // A reader that sees nothing at `place` now puts the old folder back: then once more.
    if (rename(made.c_str(), place.c_str()) == 0) return 0;
    error = errno;
    if (error != ENOTEMPTY && error != EEXIST) break;
  }
  if (rename(aside.c_str(), place.c_str()) != 0 && error == 0) error = errno;
  return error;
}

}  // namespace

std::string read_file(const fs::path& path) {
  std::string out;
  read_pieces(path, [&](std::string_view piece) { out += piece; });
  return out;
}

Json parse_json(std::string_view text, const std::string& what) {
  // Deep nesting would exhaust the stack in the parser's consumers.
  int depth = 0;
  bool too_deep = false;
  auto guard = [&](int level, Json::parse_event_t, Json&) {
    depth = level;
    if (level > 200) too_deep = true;
    return !too_deep;
  };
  try {
    Json value = Json::parse(text, guard);
    if (too_deep) throw data_error("{}: nested more than 200 deep", what);
    return value;
  } catch (const nlohmann::json::parse_error& e) {
    throw data_error("{}: not valid JSON at byte {}", what, e.byte);
  } catch (const nlohmann::json::exception&) {
    throw data_error("{}: not valid JSON", what);
  }
}

Json read_json(const fs::path& path) { return parse_json(read_file(path), path.string()); }

void check_writable(const fs::path& path) {
  const Place place = place_of(path);
  if (place.direct) {
    if (place.descriptor >= 0 || access(place.path.c_str(), W_OK) == 0) return;
    throw usage_error("cannot write {}: {}; choose another -o", path.string(),
                      std::strerror(errno));
  }
  std::error_code error;
  fs::path folder = parent_of(fs::absolute(place.path));
  while (!fs::exists(folder, error) && folder.has_relative_path()) folder = folder.parent_path();
  if (!fs::is_directory(folder, error)) {
    throw usage_error("cannot write {}: {} is no folder; choose another -o", path.string(),
                      folder.string());
  }
  // Tried out: permissions alone do not tell for root, nor for what is no disk.
  try {
    const Temporary trial(folder / "tessera", Temporary::Kind::folder);
  } catch (const std::system_error& e) {
    throw usage_error("cannot write {}: {}: {}; choose another -o", path.string(), folder.string(),
                      std::strerror(e.code().value()));
  }
}

void warn_of_leftovers(const fs::path& path, const Log& log) {
  for (const auto& left : remove_leftovers(place_of(path).path)) {
    const auto by = parse_temporary(left.filename().string());
    log.warn("{} was begun by process {}{} and not ended: remove it unless that still runs",
             left.string(), by->pid, by->host.empty() ? "" : " on host " + by->host);
  }
}

void write_file_with(const fs::path& path, const std::function<void(std::ostream&)>& write,
                     const std::function<bool()>& stop_requested) {
  if (is_within_temporary(path)) return write_within({path}, write, stop_requested);
  const Place place = place_of(path);
  if (place.direct) return write_directly(place, write, stop_requested);
  struct stat before = {};
  const bool there = stat(place.path.c_str(), &before) == 0;
  if (there && S_ISDIR(before.st_mode)) throw write_failed(path, EISDIR);
  const auto made = begin(path, place.path, Temporary::Kind::file);
  if (there) std::ignore = fchmod(made->fd(), before.st_mode & 0777);
  write_to(made->fd(), place, write, stop_requested);
  if (const int error = sync_fd(made->fd()); error != 0) throw write_failed(path, error);
  if (rename(made->path().c_str(), place.path.c_str()) != 0) throw write_failed(path, errno);
  made->release();
  sync_path(parent_of(place.path));
}

void write_file(const fs::path& path, std::string_view bytes) {
  write_file_with(path, [&](std::ostream& out) {
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  });
}

void write_json(const fs::path& path, const Json& value) {
  write_file(path, value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

bool folder_exists(const fs::path& path) {
  std::error_code error;
  const fs::path place = place_of(path).path;
  if (!fs::exists(place, error)) fs::rename(aside_of(place), place, error);
  return fs::is_directory(place, error);
}

void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  const fs::path place = place_of(path).path;
  std::error_code error;
  fs::create_directories(parent_of(place), error);
  if (error) throw write_failed(path, error.value());
  if (!folder_exists(place) && fs::exists(place, error)) throw write_failed(path, ENOTDIR);
  const auto made = begin(path, place, Temporary::Kind::folder);
  write(made->path());
  sync_tree(made->path());
  if (const int failed = replace_folder(made->path(), place); failed != 0) {
    throw write_failed(path, failed);
  }
  // Before the old folder goes, which `made` names now, or the one aside.
  sync_path(parent_of(place));
  fs::remove_all(aside_of(place), error);
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr);
}

Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }

void Sha256::add(std::string_view bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), digest.data(), &size);
  std::string out;
  for (unsigned i = 0; i < size; ++i) out += fmt::format("{:02x}", digest[i]);
  return out;
}

std::string sha256(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.hex();
}

std::string sha256_of_file(const fs::path& path, const std::function<bool()>& stop_requested) {
  Sha256 hash;
  read_pieces(path, [&](std::string_view piece) {
    end_if_stopped(stop_requested);
    hash.add(piece);
  });
  return hash.hex();
}

std::string now_rfc3339() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

}  // namespace tessera

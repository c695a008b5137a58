#include "tessera/base/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <regex>
#include <vector>

#include "tessera/base/error.h"

namespace tessera {
namespace {

RunError write_failed(const fs::path& path, int error) {
  // The name that the reader knows, not that of the folder it was being written in.
  static const std::regex temporary(R"((^|/)\.([^/]+)\.\d+\.tmp(?=/|$))");
  const std::string place = std::regex_replace(path.string(), temporary, "$1$2");
  std::error_code ignored;
  return {Exit::failed,
          fmt::format("cannot write {}: {}{}", place, std::strerror(error),
                      fs::exists(place, ignored) ? "; what was there before is unchanged" : "")};
}

fs::path beside(const fs::path& path) {
  fs::path clean = path.has_filename() ? path : path.parent_path();
  return clean.parent_path() / fmt::format(".{}.{}.tmp", clean.filename().string(), getpid());
}

void sync_path(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

/// One call for a folder of many files: a sync of each takes milliseconds.
void sync_file_system(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  if (fd < 0) return;
  syncfs(fd);
  close(fd);
}

fs::path parent_of(const fs::path& path) {
  return path.parent_path().empty() ? fs::path(".") : path.parent_path();
}

/// Removes what killed processes left beside `place`, named as beside() names it.
void remove_leftovers(const fs::path& place) {
  static const std::regex pattern(R"(\.(.+)\.(\d{1,9})\.tmp)");
  std::error_code ignored;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(parent_of(place), ignored)) {
    std::smatch match;
    const std::string file = entry.path().filename().string();
    if (!std::regex_match(file, match, pattern) || match[1] != place.filename().string()) continue;
    if (kill(std::stoi(match[2]), 0) == 0 || errno != ESRCH) continue;  // its writer lives
    found.push_back(entry.path());
  }
  for (const auto& path : found) fs::remove_all(path, ignored);
}

/// Removes the path at the end of the scope unless released.
struct Cleanup {
  fs::path path;
  ~Cleanup() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
};

}  // namespace

std::string read_file(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error))
    throw data_error("{} is a folder, wanted a file", path.string());
  std::ifstream in(path, std::ios::binary);
  if (!in) throw data_error("no file {}: {}", path.string(), std::strerror(errno));
  return {std::istreambuf_iterator<char>(in), {}};
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
  std::error_code error;
  fs::path place = parent_of(fs::absolute(path.has_filename() ? path : path.parent_path()));
  while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
  if (!fs::is_directory(place, error)) {
    throw usage_error("cannot write {}: {} is no folder; choose another -o", path.string(),
                      place.string());
  }
  // Tried out: permissions alone do not tell for root, nor for what is no disk.
  const fs::path trial = place / fmt::format(".tessera.{}.tmp", getpid());
  if (!fs::create_directory(trial, error)) {
    throw usage_error("cannot write {}: {}: {}; choose another -o", path.string(), place.string(),
                      error.message());
  }
  fs::remove(trial, error);
}

void write_file_with(const fs::path& path, const std::function<void(std::ostream&)>& write) {
  remove_leftovers(path);
  Cleanup temporary{beside(path)};
  {
    std::ofstream out(temporary.path, std::ios::binary | std::ios::trunc);
    if (!out) {
      temporary.path.clear();
      throw write_failed(path, errno);
    }
    write(out);
    out.flush();
    if (!out) throw write_failed(path, errno ? errno : ENOSPC);
  }
  sync_path(temporary.path);
  if (rename(temporary.path.c_str(), path.c_str()) != 0) throw write_failed(path, errno);
  temporary.path.clear();
}

void write_file(const fs::path& path, std::string_view bytes) {
  write_file_with(path, [&](std::ostream& out) {
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  });
}

void write_json(const fs::path& path, const Json& value) {
  write_file(path, value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  const fs::path place = path.has_filename() ? path : path.parent_path();
  std::error_code error;
  fs::create_directories(parent_of(place), error);
  if (error) throw write_failed(place, error.value());
  remove_leftovers(place);
  Cleanup temporary{beside(place)};
  fs::remove_all(temporary.path, error);
  fs::create_directory(temporary.path, error);
  if (error) {
    temporary.path.clear();
    throw write_failed(place, error.value());
  }
  write(temporary.path);
  sync_file_system(temporary.path);
  constexpr unsigned kExchange = 2;  // RENAME_EXCHANGE
  if (fs::exists(place)) {
    if (syscall(SYS_renameat2, AT_FDCWD, temporary.path.c_str(), AT_FDCWD, place.c_str(),
                kExchange) != 0) {
      throw write_failed(place, errno);
    }
    // temporary.path now names the old folder, which Cleanup removes.
  } else {
    if (rename(temporary.path.c_str(), place.c_str()) != 0) throw write_failed(place, errno);
    temporary.path.clear();
  }
  sync_path(parent_of(place));
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

std::string sha256_of_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw data_error("no file {}", path.string());
  Sha256 hash;
  std::string buffer(1 << 20, '\0');
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    hash.add(std::string_view(buffer.data(), static_cast<size_t>(in.gcount())));
  }
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

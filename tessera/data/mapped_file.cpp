#include "tessera/data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tessera/base/error.h"

namespace tessera {

MappedFile map_file(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw data_error("no file {}: {}", path.string(), std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } closer{fd};
  struct stat about{};
  if (fstat(fd, &about) != 0) {
    throw data_error("cannot read {}: {}", path.string(), std::strerror(errno));
  }
  if (S_ISDIR(about.st_mode)) throw data_error("{} is a folder, wanted a file", path.string());
  if (!S_ISREG(about.st_mode)) throw data_error("{} is no regular file", path.string());
  const auto size = static_cast<size_t>(about.st_size);
  if (size == 0) return {};
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    throw data_error("cannot map {}: {}", path.string(), std::strerror(errno));
  }
  std::shared_ptr<const void> owner(data,
                                    [size](const void* p) { munmap(const_cast<void*>(p), size); });
  return {std::move(owner), {static_cast<const char*>(data), size}};
}

}  // namespace tessera

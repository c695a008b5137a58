// The main of a fuzz target without libFuzzer: runs every file of the corpora given, then fixed
// mutations of each (truncations, byte changes, splices), the same on every machine.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/base/files.h"
#include "tessera/base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;
constexpr uint32_t kMutations = 300;  // of every seed
constexpr size_t kMaxSize = 1 << 16;

/// Bytes that mean something to a reader: signs, digits, ends of ranges.
constexpr std::string_view kTelling("\0\x01\x7f\x80\xff\n\r\t\"{}[]:,;-+.0919eE ", 25);

std::string mutated(std::string bytes, const std::vector<std::string>& seeds,
                    const tessera::Random& random, uint64_t seed, uint64_t step) {
  uint32_t draw = 0;
  const auto below = [&](size_t n) -> size_t {
    return random.below(static_cast<uint32_t>(std::max<size_t>(n, 1)), step, seed, draw);
  };
  const size_t n_changes = 1 + below(4);
  for (size_t change = 0; change < n_changes; ++change) {
    const size_t at = below(bytes.size() + 1);
    switch (below(6)) {
      case 0:  // cut
        bytes.resize(at);
        break;
      case 1:  // any byte
        if (at < bytes.size()) bytes[at] = static_cast<char>(below(256));
        break;
      case 2:  // a telling byte
        if (at < bytes.size()) bytes[at] = kTelling[below(kTelling.size())];
        break;
      case 3:  // one bit
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(8));
        break;
      case 4: {  // a piece of another seed
        const std::string& other = seeds[below(seeds.size())];
        const size_t from = below(other.size() + 1);
        bytes.insert(at, other.substr(from, below(64)));
        break;
      }
      default:  // a piece goes, or comes twice
        if (below(2) == 0) {
          bytes.erase(at, below(16));
        } else {
          bytes.insert(at, bytes.substr(at, below(32)));
        }
    }
  }
  bytes.resize(std::min(bytes.size(), kMaxSize));
  return bytes;
}

/// Runs one input; what escapes names the input, which is kept beside for a look.
void run(const std::string& bytes, const std::string& name) {
  try {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  } catch (const std::exception& e) {
    const auto kept = fs::temp_directory_path() / "tessera-fuzz-failure";
    tessera::write_file(kept, bytes);
    fmt::print(stderr, "{}: escaped: {}\ninput kept as {}\n", name, e.what(), kept.string());
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i) {
    if (fs::is_directory(argv[i])) {
      for (const auto& entry : fs::directory_iterator(argv[i])) files.push_back(entry.path());
    } else if (fs::exists(argv[i])) {
      files.emplace_back(argv[i]);
    }
  }
  if (files.empty()) {
    fmt::print(stderr, "no corpus: every fuzz target keeps at least one seed\n");
    return 1;
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> seeds;
  for (const auto& file : files) seeds.push_back(tessera::read_file(file));

  run("", "empty input");
  for (size_t seed = 0; seed < seeds.size(); ++seed) run(seeds[seed], files[seed].string());
  size_t n_runs = 1 + seeds.size();
  for (size_t seed = 0; seed < seeds.size(); ++seed) {
    const std::string name = files[seed].filename().string();
    const tessera::Random random(1, "fuzz/" + name);
    for (uint32_t step = 0; step < kMutations; ++step, ++n_runs) {
      run(mutated(seeds[seed], seeds, random, seed, step),
          fmt::format("{}, mutation {}", name, step));
    }
  }
  fmt::print("{} inputs\n", n_runs);
  return 0;
}

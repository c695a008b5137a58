#include <algorithm>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/import/split.h"

// "--split" and "--rounding", parted by a line feed; a split that parses labels a small table.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = std::min(text.find('\n'), text.size());
  const std::string_view rounding = end < text.size() ? text.substr(end + 1) : std::string_view();
  try {
    const SplitSpec spec = parse_split(text.substr(0, end), rounding);
    EventTable table;
    table.time_unit = "s";
    for (int row = 0; row < 24; ++row) {
      table.user.push_back(table.users.add(std::to_string(row % 5)));
      table.item.push_back(table.items.add(std::to_string(row % 7)));
      table.time.push_back(row);
    }
    const SplitResult result = assign_split(table, spec);
    if (std::count(table.split.begin(), table.split.end(), Split::none) > 0) __builtin_trap();
    if (!result.fold.empty() && result.fold.size() != table.split.size()) __builtin_trap();
  } catch (const InputError&) {
  }
  return 0;
}

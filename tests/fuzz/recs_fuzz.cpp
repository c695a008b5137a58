#include <cstdint>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/eval/evaluate.h"

// Anyone's file of recommendations, read and evaluated: only InputError may escape.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  static const Dataset data = make_dataset(
      3, 6, make_interactions(3, std::vector<int32_t>{0, 1, 2}, std::vector<int32_t>{0, 0, 0}),
      make_interactions(3, std::vector<int32_t>{0}, std::vector<int32_t>{3}),
      make_interactions(3, std::vector<int32_t>{0, 1, 2}, std::vector<int32_t>{1, 2, 5}));
  try {
    const RecommendationLists lists = parse_recommendations(
        std::string_view(reinterpret_cast<const char*>(bytes), size), "recs", data);
    evaluate_lists(lists, data, find_protocol("strict"), Split::test, {});
  } catch (const InputError&) {
  }
  return 0;
}

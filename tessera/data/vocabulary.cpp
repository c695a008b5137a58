#include "tessera/data/vocabulary.h"

#include <functional>

namespace tessera {

int32_t Vocabulary::find(std::string_view id) const {
  if (slots_.empty()) return -1;
  const size_t mask = slots_.size() - 1;
  for (size_t slot = std::hash<std::string_view>{}(id)&mask;; slot = (slot + 1) & mask) {
    if (slots_[slot] < 0 || (*this)[slots_[slot]] == id) return slots_[slot];
  }
}

int32_t Vocabulary::add(std::string_view id) {
  const int32_t found = find(id);
  if (found >= 0) return found;
  const auto index = static_cast<int32_t>(size());
  bytes_ += id;
  starts_.push_back(bytes_.size());
  if (starts_.size() * 2 > slots_.size()) {
    grow();
  } else {
    const size_t mask = slots_.size() - 1;
    size_t slot = std::hash<std::string_view>{}(id)&mask;
    while (slots_[slot] >= 0) slot = (slot + 1) & mask;
    slots_[slot] = index;
  }
  return index;
}

void Vocabulary::grow() {
  slots_.assign(slots_.empty() ? 16 : slots_.size() * 2, -1);
  const size_t mask = slots_.size() - 1;
  for (int64_t i = 0; i < size(); ++i) {
    size_t slot = std::hash<std::string_view>{}((*this)[i]) & mask;
    while (slots_[slot] >= 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<int32_t>(i);
  }
}

std::vector<std::string> Vocabulary::ids() const {
  std::vector<std::string> out;
  out.reserve(size());
  for (int64_t i = 0; i < size(); ++i) out.emplace_back((*this)[i]);
  return out;
}

std::vector<std::string> Vocabulary::near(std::string_view id) const {
  constexpr size_t kMost = 10'000, kLonger = 2;
  std::vector<std::string> out;
  for (int64_t index = 0; index < size() && out.size() < kMost && !id.empty(); ++index) {
    const std::string_view other = (*this)[index];
    if (other.size() > id.size() + kLonger || other.size() + kLonger < id.size()) continue;
    if (!other.empty() && (other.front() == id.front() || other.back() == id.back())) {
      out.emplace_back(other);
    }
  }
  return out;
}

}  // namespace tessera

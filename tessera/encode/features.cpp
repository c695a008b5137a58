#include "tessera/encode/features.h"

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/manifest.h"

namespace tessera {
namespace {

constexpr double kLargestHalf = 65504;

/// Every file of `from` in `to`, as a link where the file system can, else as a copy.
void link_all(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::recursive_directory_iterator(from)) {
    const fs::path place = to / fs::relative(entry.path(), from);
    if (entry.is_directory()) {
      fs::create_directories(place);
      continue;
    }
    std::error_code error;
    fs::create_hard_link(entry.path(), place, error);
    if (error) fs::copy_file(entry.path(), place);
  }
}

bool ours(const Json& entry) {
  return entry.contains("encoder") && entry["encoder"].is_object() &&
         entry["encoder"].contains("made_by") && entry["encoder"]["made_by"].is_string();
}

void refuse_foreign(const Json& manifest, const std::string& modality) {
  if (!manifest.contains(modality) || ours(manifest[modality])) return;
  throw usage_error(
      "the dataset has a feature '{}' that was brought in from outside; choose another name with "
      "`modality` NAME",
      modality);
}

}  // namespace

void refuse_foreign_feature(const fs::path& folder, const std::string& modality) {
  refuse_foreign(read_manifest(folder), modality);
}

torch::ScalarType feature_dtype(const std::string& name) {
  if (name == "float32") return torch::kFloat;
  if (name == "float16") return torch::kHalf;
  throw usage_error("`dtype` {}: wanted float16 or float32{}", printable(name),
                    did_you_mean(name, {"float16", "float32"}));
}

Json put_features(const fs::path& folder, const std::vector<NewFeature>& features,
                  torch::ScalarType dtype) {
  const Json about = read_dataset_json(folder, false);
  Json manifest = read_manifest(folder);
  for (const auto& feature : features) {
    if (canonical_modality(feature.modality) != feature.modality) {
      throw usage_error("'{}' is no name of a modality here", printable(feature.modality));
    }
    refuse_foreign(manifest, feature.modality);
    const double largest = feature.rows.numel() > 0 ? feature.rows.abs().max().item<double>() : 0;
    if (dtype == torch::kHalf && largest > kLargestHalf) {
      throw data_error("'{}' has the number {:.6g}, and float16 ends at {}; use `dtype` float32",
                       feature.modality, largest, kLargestHalf);
    }
  }
  const FolderRows rows = read_folder(folder, about, false);
  Json entries = Json::object();
  write_folder(folder, [&](const fs::path& to) {
    link_all(folder, to);
    for (const auto& feature : features) {
      Json report;
      Json entry = import_rows(feature.modality, feature.rows.to(dtype), feature.ids,
                               feature.source, to, rows.table.items, report, feature.encoder);
      entry["valid_for"] = feature.valid_for;
      if (!feature.content_sha256.empty()) {
        const std::string file = feature.modality + "_feat.sources";
        write_file_with(to / file, [&](std::ostream& out) {
          for (const auto& hash : feature.content_sha256) out << hash << '\n';
        });
        entry["content"] = file;
      }
      manifest[feature.modality] = entry;
      entries[feature.modality] = std::move(entry);
    }
    write_json(to / "features.json", manifest);
  });
  return entries;
}

}  // namespace tessera

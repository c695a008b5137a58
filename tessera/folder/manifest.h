#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/random.h"
#include "tessera/data/feature.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// "image" for Visual, "text" for textual, "audio" for acoustic, else the lower-case word itself;
/// exit 2 unless it is [a-z][a-z0-9_]*.
std::string canonical_modality(std::string_view name);

/// "float16", "float32" or "float64".
const char* dtype_name(torch::ScalarType dtype);

/// A feature file somebody brings, found or named, not yet read.
struct FeatureSource {
  enum class Kind { npy, safetensors, table, folder, amazon };
  std::string modality;
  std::filesystem::path path;
  std::filesystem::path ids_path;  ///< empty: ids are in the file, or there are none
  Kind kind = Kind::npy;
};
const char* kind_name(FeatureSource::Kind kind);

/// What lies beside the interactions and in `features/` under `folder`, by modality: `<m>_feat`
/// with .npy, .safetensors, .tsv, .csv, .b or a folder of one .npy an item, and
/// `image_features_*.b`. Two files of one modality are exit 3.
std::vector<FeatureSource> find_features(const std::filesystem::path& folder);

/// "image=FILE[,IDS]" of --feature; exit 2 when it is no such text, exit 3 when a file is missing.
FeatureSource parse_feature_argument(const std::string& text);

/// What a source holds. `ids` names row r by ids[r]; without ids (`has_ids` false) row r belongs to
/// the item whose id is the decimal number r.
struct FeatureInfo {
  int64_t n_rows = 0, width = 0;
  std::string dtype;  ///< float16, float32 or float64 as found
  bool has_ids = false;
  Vocabulary ids;
  Json encoder, source, valid_for;  ///< of a features.json beside it, else null
};

/// Reads shape and ids (a text table is scanned once), not the numbers. Exit 3 for damage, zero
/// width, duplicate ids, ids that do not count up to the rows.
FeatureInfo describe_feature(const FeatureSource& source);

/// Copies a source into a dataset folder as `<modality>_feat.npy` and, where it has ids, `.ids`;
/// float64 becomes float32, other numbers keep their bytes. Returns the entry of features.json.
/// `report` receives {"rows","width","dtype","matched","missing","unknown","ids"}. Exit 3 for NaN
/// or infinity, naming row, column and id, and for a source without ids unless `dense`. Under
/// `dense` the caller refuses item ids at or above the rows.
Json import_feature(const FeatureSource& source, const std::filesystem::path& folder,
                    const Vocabulary& item_ids, bool dense, Json& report,
                    const std::function<bool()>& stop_requested = {});

/// The same for rows [n, width] in memory, stored as float16 where they are that, else as float32,
/// row r named row_ids[r]; `about` is the entry's "source" (of vectors found in item tables) and
/// `encoder` its "encoder".
Json import_rows(const std::string& modality, const torch::Tensor& rows, const Vocabulary& row_ids,
                 const Json& about, const std::filesystem::path& folder, const Vocabulary& item_ids,
                 Json& report, const Json& encoder = nullptr);

/// The features.json of a folder, checked; an empty object when there is none.
Json read_manifest(const std::filesystem::path& folder);
/// The same from text; `what` names it in messages.
Json parse_manifest(std::string_view text, const std::string& what);

/// Maps the file of one entry and matches its rows to the items. Exit 3 when the file is missing,
/// its shape or dtype is not the entry's, or, under `verify`, its hash.
Feature open_feature(const std::filesystem::path& folder, const std::string& name,
                     const Json& entry, const Vocabulary& item_ids, bool verify);

/// Shuffles the rows among the items that have one; stream "permute/<name>" of the family.
void permute_feature(Feature& feature, const Random& random);

/// True for features that a model of Tessera wrote: encoder.made_by is "model", or the encoder is
/// one that wrote its files before there was such a field.
bool made_by_model(const Json& entry);

/// What the rows show: where a model made them of another feature, encoder.modality; else the
/// feature itself. By name.
std::string shown_modality(const Feature& feature);

}  // namespace tessera

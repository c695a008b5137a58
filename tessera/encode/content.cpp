#include "tessera/encode/content.h"

#include <algorithm>
#include <fstream>
#include <map>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/encode/exec.h"
#include "tessera/encode/features.h"
#include "tessera/encode/tfidf.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/process.h"

namespace tessera {
namespace {

struct ContentSettings {
  std::string modality;
  std::vector<std::string> text;
  bool cache = true;
  int64_t batch = 0;
  int64_t seed = 999, threads = 0;
  TfidfOptions tfidf;

  void describe(Fields& f, bool tfidf_too) {
    f.add("modality", modality,
          "name of the feature; exec: also whose files of media.tsv are sent");
    f.list("text", text,
           "columns of items.tsv that make the text; empty: title, plot and the like");
    f.add("seed", seed, "of the directions where the iteration starts", at_least(0));
    f.add("threads", threads, "0: all cores", at_least(0));
    if (!tfidf_too) {
      f.add("cache", cache, "keep the rows of content that has not changed");
      f.add("batch", batch, "items that one run of the command gets; 0: all", at_least(0));
      return;
    }
    f.add("width", tfidf.width, "of the rows, at most", at_least(1));
    f.add("words", tfidf.words, "n-grams of up to so many words", between(1, 8));
    f.add("letters", tfidf.letters, "n-grams of 3 up to so many letters; 0: none", between(0, 16));
    f.add("min_count", tfidf.min_count, "texts that a term must occur in", at_least(1));
  }
};

/// What an encoder gets of one item, and its hash.
struct Content {
  std::string id, text, path, sha256;
};

struct Contents {
  std::vector<Content> items;  ///< with content
  int64_t missing = 0;         ///< items without any
  Json source;                 ///< "kind" and where it came from
};

Contents texts_of(const fs::path& folder, const Vocabulary& ids, std::vector<std::string> wanted) {
  const fs::path path = folder / "items.tsv";
  ItemColumns columns;
  if (fs::exists(path)) {
    std::ifstream in(path, std::ios::binary);
    columns = read_item_columns(in, path.string(), ids);
  }
  if (wanted.empty()) {
    for (const auto& name : columns.names) {
      for (const char* usual : {"title", "name", "genres", "genre", "categories", "category",
                                "brand", "description", "plot", "summary", "text", "tags"}) {
        if (squeezed(name) == usual) wanted.push_back(name);
      }
    }
    if (wanted.empty()) {
      throw data_error(
          "{} has no texts: bring them with 'tessera import .. --items FILE', or name columns with "
          "`text` a,b{}",
          folder.string(),
          columns.names.empty() ? ""
                                : fmt::format("; there are {}", fmt::join(columns.names, ", ")));
    }
  }
  std::vector<const std::vector<std::string>*> chosen;
  for (const auto& name : wanted) {
    chosen.push_back(columns.find(name));
    if (chosen.back() == nullptr) {
      throw usage_error("items.tsv has no column '{}'{}", printable(name),
                        did_you_mean(name, columns.names));
    }
  }
  Contents out;
  out.source = {{"kind", "text"}, {"columns", wanted}};
  for (int64_t item = 0; item < ids.size(); ++item) {
    std::string text;
    for (const auto* column : chosen) {
      const std::string& cell = (*column)[static_cast<size_t>(item)];
      if (!cell.empty()) text += (text.empty() ? "" : "\n") + cell;
    }
    if (text.empty()) {
      ++out.missing;
    } else {
      out.items.push_back({std::string(ids[item]), text, "", sha256(text)});
    }
  }
  return out;
}

/// The files of one modality in media.tsv; no items where it has none.
Contents media_of(const fs::path& folder, const Vocabulary& ids, const std::string& modality) {
  Contents out;
  out.source = {{"kind", "files"}, {"modality", modality}};
  if (modality.empty() || !fs::exists(folder / "media.tsv")) return out;
  read_media(folder, [&](const MediaRow& row) {
    if (row.modality == modality && ids.find(row.item) >= 0) {
      out.items.push_back(
          {std::string(row.item), "", std::string(row.path), std::string(row.sha256)});
    }
    return true;
  });
  out.missing = ids.size() - static_cast<int64_t>(out.items.size());
  return out;
}

/// Rows of the folder's feature by the hash of what they were made from, if `command` made them and
/// they are stored as finely as `dtype`.
std::map<std::string, std::vector<float>> cached_rows(const fs::path& folder,
                                                      const std::string& modality,
                                                      const std::string& command,
                                                      torch::ScalarType dtype) {
  std::map<std::string, std::vector<float>> out;
  const Json manifest = read_manifest(folder);
  if (!manifest.contains(modality)) return out;
  const Json& entry = manifest[modality];
  if (!entry["encoder"].is_object() || entry["encoder"].value("command", "") != command ||
      !entry.contains("content") || !entry["content"].is_string()) {
    return out;
  }
  std::ifstream hashes(folder / fs::path(entry["content"].get<std::string>()).filename());
  const MappedArray rows = map_npy(folder / entry["file"].get<std::string>());
  if (rows.item_size() < static_cast<int64_t>(c10::elementSize(dtype))) return out;
  std::string hash;
  for (int64_t r = 0; r < rows.n_rows() && std::getline(hashes, hash); ++r) {
    auto& row = out[hash];
    row.resize(static_cast<size_t>(rows.width()));
    rows.read_row(r, row.data());
  }
  return out;
}

NewFeature tfidf_feature(const ContentSettings& settings, const Contents& contents,
                         const std::string& key, const std::function<bool()>& stop_requested) {
  std::vector<std::string> texts;
  NewFeature out;
  for (const auto& item : contents.items) {
    texts.push_back(item.text);
    out.ids.add(item.id);
  }
  out.rows = tfidf_rows(texts, settings.tfidf,
                        Random(static_cast<uint64_t>(settings.seed), "tfidf"), stop_requested);
  if (out.rows.size(1) == 0) {
    throw data_error("tfidf: no term occurs in {} texts or more; try `min_count` 1",
                     settings.tfidf.min_count);
  }
  out.encoder = {{"name", "tfidf"},
                 {"made_by", "tfidf"},
                 {"words", settings.tfidf.words},
                 {"letters", settings.tfidf.letters},
                 {"min_count", settings.tfidf.min_count},
                 {"seed", settings.seed},
                 {"key", key}};
  out.source = contents.source;
  return out;
}

NewFeature exec_feature(const fs::path& folder, const std::string& command,
                        const ContentSettings& settings, const Contents& contents,
                        torch::ScalarType dtype, const Log& log,
                        const std::function<bool()>& stop_requested) {
  std::map<std::string, std::vector<float>> rows;
  if (settings.cache) rows = cached_rows(folder, settings.modality, command, dtype);
  std::vector<Json> requests;
  std::vector<std::string> hashes;
  int64_t reused = 0;
  for (const auto& item : contents.items) {
    if (rows.contains(item.sha256)) {
      ++reused;
      continue;
    }
    Json request = {{"id", item.id}};
    if (item.path.empty()) {
      request["text"] = item.text;
    } else {
      request["path"] = item.path;
    }
    requests.push_back(std::move(request));
    hashes.push_back(item.sha256);
  }
  log.info("exec: {} items sent, {} unchanged", requests.size(), reused);
  Json failures = Json::object();
  const size_t batch = settings.batch > 0 ? static_cast<size_t>(settings.batch)
                                          : std::max<size_t>(1, requests.size());
  for (size_t begin = 0; begin < requests.size(); begin += batch) {
    const size_t end = std::min(requests.size(), begin + batch);
    const std::vector<Json> part(requests.begin() + static_cast<std::ptrdiff_t>(begin),
                                 requests.begin() + static_cast<std::ptrdiff_t>(end));
    ExecAnswers answers = run_exec(command, part, stop_requested);
    for (const auto& [reason, count] : answers.failures.items()) {
      failures[reason] = failures.value(reason, int64_t{0}) + count.get<int64_t>();
    }
    for (size_t r = 0; r < part.size(); ++r) {
      if (!answers.rows[r].empty()) rows[hashes[begin + r]] = std::move(answers.rows[r]);
    }
    if (end < requests.size()) log.info("exec: {} of {} items", end, requests.size());
  }
  NewFeature out;
  std::vector<float> all;
  size_t width = 0;
  for (const auto& item : contents.items) {
    const auto row = rows.find(item.sha256);
    if (row == rows.end()) continue;
    if (width == 0) width = row->second.size();
    if (row->second.size() != width) {
      throw data_error(
          "the command's vectors have different widths: {} and {} (item '{}'); if it has changed, "
          "add `cache` false",
          width, row->second.size(), printable(item.id));
    }
    all.insert(all.end(), row->second.begin(), row->second.end());
    out.ids.add(item.id);
    out.content_sha256.push_back(item.sha256);
  }
  int64_t n_failed = 0;
  for (const auto& [reason, count] : failures.items()) {
    log.warn("exec: {} {}", count.dump(), reason);
    n_failed += count.get<int64_t>();
  }
  if (out.ids.size() == 0) throw data_error("the encoder's command gave no vector at all");
  out.rows =
      torch::tensor(all, torch::kFloat).reshape({out.ids.size(), static_cast<int64_t>(width)});
  out.encoder = {{"name", "exec"}, {"made_by", "exec"}, {"command", command}};
  out.source = contents.source;
  out.source["failed"] = n_failed;
  out.source["failures"] = failures;
  return out;
}

}  // namespace

bool is_content_encoder(const std::string& encoder) {
  return squeezed(encoder) == "tfidf" || encoder.rfind("exec:", 0) == 0;
}

Json encode_content(const fs::path& folder, const std::string& encoder, const Settings& given,
                    torch::ScalarType dtype, const Log& log,
                    const std::function<bool()>& stop_requested) {
  const bool tfidf = encoder.rfind("exec:", 0) != 0;
  const std::string command = tfidf ? "" : encoder.substr(5);
  if (!tfidf && command.find_first_not_of(' ') == std::string::npos) {
    throw usage_error("`encoder` exec: wanted a command, like 'exec:python3 vectors.py'");
  }
  ContentSettings settings;
  Fields fields(tfidf ? "tfidf" : "exec");
  settings.describe(fields, tfidf);
  refuse_unknown(given, {&fields}, fields.owner());
  fields.apply(given);
  if (settings.threads > 0) use_threads(settings.threads);
  const Json about = read_dataset_json(folder, false);
  const Vocabulary ids = read_folder(folder, about, false).table.items;
  Contents contents;
  if (!settings.modality.empty()) settings.modality = canonical_modality(settings.modality);
  refuse_foreign_feature(folder, settings.modality.empty() ? "text" : settings.modality);
  if (!tfidf && settings.text.empty()) contents = media_of(folder, ids, settings.modality);
  if (contents.items.empty()) contents = texts_of(folder, ids, settings.text);
  if (settings.modality.empty()) settings.modality = "text";
  if (contents.items.empty()) throw data_error("{}: every text is empty", folder.string());

  Json& source = contents.source;
  source["read"] = contents.items.size();
  source["missing"] = contents.missing;
  NewFeature feature;
  if (tfidf) {
    std::string all = fmt::format("{} {} {} {} {}\n", settings.tfidf.width, settings.tfidf.words,
                                  settings.tfidf.letters, settings.tfidf.min_count, settings.seed);
    if (dtype == torch::kHalf) all += "float16\n";
    for (const auto& item : contents.items) all += item.id + " " + item.sha256 + "\n";
    const std::string key = sha256(all);
    const Json manifest = read_manifest(folder);
    if (manifest.contains(settings.modality)) {
      const Json& entry = manifest[settings.modality];
      if (entry["encoder"].is_object() && entry["encoder"].value("key", "") == key) {
        log.info("'{}' is up to date: same texts, same settings", settings.modality);
        return {{"folder", folder.string()}, {"features", {{settings.modality, entry}}}};
      }
    }
    feature = tfidf_feature(settings, contents, key, stop_requested);
  } else {
    feature = exec_feature(folder, command, settings, contents, dtype, log, stop_requested);
  }
  feature.modality = settings.modality;
  return {{"folder", folder.string()}, {"features", put_features(folder, {feature}, dtype)}};
}

}  // namespace tessera

#include "tessera/study/demo.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/random.h"
#include "tessera/data/npy.h"
#include "tessera/import/import.h"
#include "tessera/ops/process.h"
#include "tessera/serve/recommender.h"
#include "tessera/study/run.h"

namespace tessera {
namespace {

constexpr int kItems = 1200;
constexpr int kUsers = 3000;
constexpr int kEvents = 45000;
constexpr int kTrainAndValid = kEvents / 10 * 9;  // new products have no event before this row
constexpr int64_t kStart = 1735689600;            // 2025-01-01T00:00:00Z
constexpr int64_t kYear = 365 * 24 * 3600;
constexpr int kPictureSize = 48;

struct Category {
  std::string_view name;
  std::array<int, 4> materials;  // indices into kMaterials
  int cents;                     // a usual price
};
constexpr std::array<std::string_view, 13> kMaterials = {
    "stoneware", "porcelain", "glass", "enamel",  "oak",   "brass", "cotton",
    "wool",      "linen",     "felt",  "leather", "paper", "cork"};
constexpr std::array<Category, 12> kCategories = {{{"mug", {0, 1, 2, 3}, 1400},
                                                   {"bowl", {0, 1, 4, 3}, 1900},
                                                   {"plate", {0, 1, 2, 3}, 1600},
                                                   {"vase", {0, 2, 5, 1}, 3200},
                                                   {"lamp", {5, 4, 2, 11}, 7900},
                                                   {"cushion", {6, 7, 8, 9}, 2900},
                                                   {"rug", {6, 7, 9, 12}, 11900},
                                                   {"blanket", {6, 7, 8, 9}, 5900},
                                                   {"bag", {10, 6, 9, 12}, 6400},
                                                   {"scarf", {7, 6, 8, 9}, 3400},
                                                   {"notebook", {11, 10, 8, 12}, 1200},
                                                   {"clock", {4, 5, 2, 12}, 4900}}};
struct Colour {
  std::string_view name;
  std::array<uint8_t, 3> rgb;
};
constexpr std::array<Colour, 10> kColours = {{{"red", {200, 40, 45}},
                                              {"orange", {232, 126, 32}},
                                              {"yellow", {240, 200, 50}},
                                              {"green", {62, 142, 65}},
                                              {"teal", {20, 140, 140}},
                                              {"blue", {45, 85, 180}},
                                              {"purple", {125, 60, 150}},
                                              {"pink", {236, 120, 165}},
                                              {"brown", {125, 82, 48}},
                                              {"grey", {120, 124, 130}}}};
constexpr std::array<std::string_view, 6> kPatterns = {"plain",   "striped", "dotted",
                                                       "checked", "zigzag",  "floral"};
constexpr std::array<std::string_view, 4> kPriceWords = {"Everyday", "Classic", "Fine", "Grand"};

struct Product {
  int category, colour, pattern, material, price_band;
  int cents;
  int appeal;       // to everybody, 1 (rarely wanted) to 6
  bool is_new;      // no event before the last weeks
  bool pictured;    // has a picture
  int pictured_as;  // the product whose picture it got: itself but for the wrong ones
};

struct Person {
  std::array<int, 3> categories;
  std::array<int, 2> colours;
  int pattern, material, price_band;
  int activity;
};

struct Event {
  int64_t time;
  int user, item;
};

std::string item_id(int item) { return fmt::format("p{:04}", item + 1); }
std::string user_id(int user) { return fmt::format("u{:04}", user + 1); }

/// Draws of one entity, one after the other.
class Draws {
 public:
  Draws(const Random& random, uint64_t row) : random_(random), row_(row) {}
  int below(int n) {
    return static_cast<int>(random_.below(static_cast<uint32_t>(n), 0, row_, draw_));
  }
  bool one_in(int n) { return below(n) == 0; }

 private:
  const Random& random_;
  uint64_t row_;
  uint32_t draw_ = 0;
};

std::vector<int> permutation(const Random& random, int n) {
  std::vector<int> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order, 0);
  return order;
}

std::vector<Product> make_products(uint64_t seed) {
  const Random random(seed, "demo/products");
  std::vector<Product> products;
  for (int item = 0; item < kItems; ++item) {
    Draws draws(random, static_cast<uint64_t>(item));
    Product p{};
    p.category = draws.below(kCategories.size());
    const Category& category = kCategories[static_cast<size_t>(p.category)];
    p.colour = draws.below(kColours.size());
    p.pattern = draws.below(kPatterns.size());
    p.material = category.materials[static_cast<size_t>(draws.below(4))];
    p.price_band = draws.below(kPriceWords.size());
    const int percent = 60 + 40 * p.price_band + draws.below(30);
    p.cents = category.cents * percent / 100 / 10 * 10 + 5;
    p.appeal = 1 + draws.below(3) + (draws.one_in(8) ? 3 : 0);
    p.pictured = !draws.one_in(20);
    p.pictured_as = draws.one_in(40) ? draws.below(kItems) : item;
    products.push_back(p);
  }
  const auto order = permutation(Random(seed, "demo/new"), kItems);
  for (int i = 0; i < kItems / 10; ++i) {
    products[static_cast<size_t>(order[static_cast<size_t>(i)])].is_new = true;
  }
  return products;
}

std::vector<Person> make_people(uint64_t seed) {
  const Random random(seed, "demo/people");
  std::vector<Person> people;
  for (int user = 0; user < kUsers; ++user) {
    Draws draws(random, static_cast<uint64_t>(user));
    Person p{};
    for (int& category : p.categories) category = draws.below(kCategories.size());
    for (int& colour : p.colours) colour = draws.below(kColours.size());
    p.pattern = draws.below(kPatterns.size());
    p.material = draws.below(kMaterials.size());
    p.price_band = draws.below(kPriceWords.size());
    const int kind = draws.below(10);  // half of the people come seldom, a few often
    p.activity = kind < 5 ? 2 : kind < 8 ? 4 : kind < 9 ? 7 : 12;
    people.push_back(p);
  }
  return people;
}

/// How much a person wants a product: a product of whole numbers, so that no rounding of any
/// machine can change a draw.
uint32_t wish(const Person& person, const Product& product) {
  uint32_t weight = static_cast<uint32_t>(product.appeal);
  if (product.category == person.categories[0]) weight *= 16;
  if (product.category == person.categories[1]) weight *= 12;
  if (product.category == person.categories[2]) weight *= 8;
  if (product.colour == person.colours[0] || product.colour == person.colours[1]) weight *= 7;
  if (product.pattern == person.pattern) weight *= 5;
  if (product.material == person.material) weight *= 3;
  if (product.price_band == person.price_band) weight *= 2;
  return weight;
}

/// Events in time order, all times different, no pair twice. The new products enter with the last
/// tenth of the events and are then three times as visible as the others.
std::vector<Event> make_events(uint64_t seed, const std::vector<Product>& products,
                               const std::vector<Person>& people) {
  const Random random(seed, "demo/events");
  std::vector<int64_t> times;
  for (int row = 0; row < kEvents; ++row) {
    Draws draws(random, static_cast<uint64_t>(row));
    times.push_back(kStart + draws.below(static_cast<int>(kYear - kEvents)));
  }
  std::sort(times.begin(), times.end());
  for (size_t row = 1; row < times.size(); ++row) {
    times[row] = std::max(times[row], times[row - 1] + 1);
  }

  // Everybody comes once; who is more active comes more often.
  std::vector<int> lots;
  for (int user = 0; user < kUsers; ++user) {
    lots.insert(lots.end(), static_cast<size_t>(people[static_cast<size_t>(user)].activity), user);
  }
  std::vector<int> visits(kUsers);
  std::iota(visits.begin(), visits.end(), 0);
  for (int row = kUsers; row < kEvents; ++row) {
    Draws draws(random, uint64_t{1000000} + static_cast<uint64_t>(row));
    visits.push_back(lots[static_cast<size_t>(draws.below(static_cast<int>(lots.size())))]);
  }
  random.shuffle(visits, 1);

  std::vector<std::vector<uint32_t>> wishes(kUsers);
  std::vector<Event> events;
  for (int row = 0; row < kEvents; ++row) {
    const int user = visits[static_cast<size_t>(row)];
    auto& weights = wishes[static_cast<size_t>(user)];
    if (weights.empty()) {
      for (const Product& product : products) {
        weights.push_back(wish(people[static_cast<size_t>(user)], product));
      }
    }
    const auto weight_of = [&](size_t item) {
      if (!products[item].is_new) return weights[item];
      return row < kTrainAndValid ? 0u : weights[item] * 3;
    };
    uint32_t total = 0;
    for (size_t item = 0; item < weights.size(); ++item) total += weight_of(item);
    uint32_t draw = 0;
    uint32_t rest = random.below(total, 2, static_cast<uint64_t>(row), draw);
    size_t item = 0;
    while (rest >= weight_of(item)) rest -= weight_of(item++);
    weights[item] = 0;
    events.push_back({times[static_cast<size_t>(row)], user, static_cast<int>(item)});
  }
  return events;
}

// --- Pictures -----------------------------------------------------------------------------------

/// True where the shape of the category covers the pixel; x and y from -24 to 23.
bool covers(int category, int x, int y) {
  const auto disc = [&](int cx, int cy, int r) {
    return (x - cx) * (x - cx) + (y - cy) * (y - cy) <= r * r;
  };
  const auto box = [&](int x0, int y0, int x1, int y1) {
    return x >= x0 && x <= x1 && y >= y0 && y <= y1;
  };
  switch (category) {
    case 0:
      return box(-14, -13, 8, 16) || (disc(9, 1, 10) && !disc(9, 1, 6));
    case 1:
      return disc(0, -6, 20) && y >= -6;
    case 2:
      return disc(0, 0, 20);
    case 3:
      return disc(0, 8, 12) || box(-5, -20, 5, 0) || box(-8, -20, 8, -17);
    case 4:
      return (y >= -20 && y <= 0 && 2 * std::abs(x) <= 14 + (y + 20)) || box(-2, 0, 2, 18) ||
             box(-10, 17, 10, 20);
    case 5:
      return box(-17, -15, 17, 15) || box(-15, -17, 15, 17);
    case 6:
      return box(-22, -12, 22, 12);
    case 7:
      return box(-18, -20, 18, 8) || box(-14, 8, 14, 20);
    case 8:
      return box(-15, -6, 15, 19) || (disc(0, -6, 12) && !disc(0, -6, 9));
    case 9:
      return (std::abs(x + y) <= 7 && box(-20, -20, 20, 20)) || box(9, -20, 17, -2);
    case 10:
      return box(-13, -19, 14, 19);
    default:
      return (disc(0, 0, 20) && !disc(0, 0, 17)) || disc(0, 0, 14) || box(-1, -20, 1, 20);
  }
}

/// True where the second tone of the pattern is.
bool second_tone(int pattern, int x, int y) {
  const int u = x + 24, v = y + 24;
  switch (pattern) {
    case 1:
      return v % 8 < 3;
    case 2:
      return (u % 8 - 4) * (u % 8 - 4) + (v % 8 - 4) * (v % 8 - 4) <= 5;
    case 3:
      return (u / 6 + v / 6) % 2 == 0;
    case 4:
      return (v + std::abs(u % 12 - 6)) % 8 < 3;
    case 5: {
      const int a = std::abs(u % 12 - 6), b = std::abs(v % 12 - 6);
      return (a <= 1 && b <= 4) || (b <= 1 && a <= 4);
    }
    default:
      return false;
  }
}

void append_u32(std::string& to, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) to += static_cast<char>(value >> shift & 255);
}

/// A chunk of a PNG file with its CRC-32 (PNG specification, section 5).
void append_chunk(std::string& to, std::string_view kind, std::string_view data) {
  append_u32(to, static_cast<uint32_t>(data.size()));
  const size_t start = to.size();
  to += kind;
  to += data;
  uint32_t crc = 0xffffffff;
  for (size_t i = start; i < to.size(); ++i) {
    crc ^= static_cast<unsigned char>(to[i]);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  append_u32(to, ~crc);
}

/// A palette picture as PNG; the pixels are stored, not compressed (RFC 1950 and 1951).
std::string png(int size, std::string_view palette, std::string_view pixels) {
  std::string header;
  append_u32(header, static_cast<uint32_t>(size));
  append_u32(header, static_cast<uint32_t>(size));
  header += std::string("\x08\x03\x00\x00\x00", 5);  // 8 bits, palette, no interlacing

  std::string rows;
  for (int y = 0; y < size; ++y) {
    rows += '\0';  // no filter
    rows += pixels.substr(static_cast<size_t>(y * size), static_cast<size_t>(size));
  }
  const auto length = static_cast<uint16_t>(rows.size());
  const auto inverse = static_cast<uint16_t>(~length);
  std::string data("\x78\x01\x01", 3);  // zlib header; one last stored block
  for (const uint16_t half : {length, inverse}) {
    data += static_cast<char>(half & 255);
    data += static_cast<char>(half >> 8);
  }
  data += rows;
  uint32_t a = 1, b = 0;  // Adler-32
  for (const char c : rows) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  append_u32(data, b << 16 | a);

  std::string file("\x89PNG\r\n\x1a\n", 8);
  append_chunk(file, "IHDR", header);
  append_chunk(file, "PLTE", palette);
  append_chunk(file, "IDAT", data);
  append_chunk(file, "IEND", "");
  return file;
}

std::string picture(const Product& product) {
  std::string palette("\xf4\xf2\xee", 3);  // the wall behind
  const auto& rgb = kColours[static_cast<size_t>(product.colour)].rgb;
  for (const uint8_t c : rgb) palette += static_cast<char>(c);  // the colour
  for (const uint8_t c : rgb)
    palette += static_cast<char>(255 - (255 - c) * 2 / 5);              // its light tone
  for (const uint8_t c : rgb) palette += static_cast<char>(c * 3 / 4);  // its grain
  std::string pixels;
  for (int row = 0; row < kPictureSize; ++row) {
    for (int column = 0; column < kPictureSize; ++column) {
      const int x = column - kPictureSize / 2, y = row - kPictureSize / 2;
      char tone = 0;
      if (covers(product.category, x, y)) {
        tone = second_tone(product.pattern, x, y) ? 2 : 1;
        // The grain is the material's: its own step and density.
        const int step = 5 + product.material;
        if (tone == 1 && (column * (product.material + 2) + row * 3) % step == 0) tone = 3;
      }
      pixels += tone;
    }
  }
  return png(kPictureSize, palette, pixels);
}

// --- Feature files ------------------------------------------------------------------------------

/// Attributes as one-hot blocks with noise: a sum of twelve uniform numbers less six is nearly
/// normal and, unlike a logarithm, the same to the last bit everywhere.
class AttributeRows {
 public:
  AttributeRows(const Random& random, double noise) : random_(random), noise_(noise) {}

  /// Adds a row with these (value, number of values) blocks.
  void add(int row, const std::vector<std::pair<int, int>>& blocks) {
    uint32_t draw = 0;
    width_ = 0;
    for (const auto& [value, n_values] : blocks) {
      for (int i = 0; i < n_values; ++i) {
        double sum = -6.0;
        for (int k = 0; k < 12; ++k) sum += random_.uniform(0, static_cast<uint64_t>(row), draw++);
        numbers_.push_back(static_cast<float>((i == value ? 1.0 : 0.0) + noise_ * sum));
      }
      width_ += n_values;
    }
    ids_ += item_id(row) + "\n";
  }

  void write(const fs::path& folder, const std::string& modality) const {
    const auto n_rows = static_cast<int64_t>(numbers_.size()) / width_;
    std::string bytes = npy_head(torch::kFloat, {n_rows, width_});
    bytes.append(reinterpret_cast<const char*>(numbers_.data()), numbers_.size() * sizeof(float));
    write_file(folder / (modality + "_feat.npy"), bytes);
    write_file(folder / (modality + "_feat.ids"), ids_);
  }

 private:
  Random random_;
  double noise_;
  int64_t width_ = 0;
  std::vector<float> numbers_;
  std::string ids_;
};

std::string title_of(const Product& product) {
  return fmt::format("{} {} {} {}", kPriceWords[static_cast<size_t>(product.price_band)],
                     kColours[static_cast<size_t>(product.colour)].name,
                     kMaterials[static_cast<size_t>(product.material)],
                     kCategories[static_cast<size_t>(product.category)].name);
}

constexpr std::string_view kReadme =
    R"(This shop is made up: no such products, people or purchases exist.
A program composed all of it from one number (the seed), so that Tessera can be tried without data.

items.jsonl     1,200 products, one JSON object a line; the title is composed from the attributes
images/         <item_id>.png, drawn from the same attributes; some products have none, some a wrong one
events.tsv      45,000 purchases of 3,000 people over one year: user_id, item_id, timestamp (Unix seconds)
*_feat.npy      feature files, row r belongs to the product in line r of the .ids file beside it.
                They are made up too: this version of Tessera does not yet encode pictures and texts, so
                the shop writes the attributes themselves, with noise. image_feat shows category,
                colour and pattern of the picture; text_feat category, colour, material and price.

A tenth of the products is new: nobody bought one before the last tenth of the events.
)";

// --- The way through ----------------------------------------------------------------------------

constexpr std::array<const char*, 6> kModels = {"Popularity", "ItemKNN", "BPR",
                                                "LightGCN",   "VBPR",    "BM3"};

/// What all six train with: fewer and longer steps than the defaults, as the shop is small.
Settings demo_settings(uint64_t seed) {
  const std::string origin = "demo";
  return {{"seed", seed, origin},
          {"protocol", "strict", origin},
          {"epochs", 100, origin},
          {"stopping_step", 5, origin},
          {"eval_step", 2, origin},
          {"learning_rate", 0.005, origin},
          {"train_batch_size", 1024, origin}};
}

/// The folder is new, empty, or holds this same demonstration; anything else is exit 2.
void claim(const fs::path& folder, const Json& identity) {
  const fs::path mark = folder / "demo.json";
  std::error_code error;
  if (fs::exists(mark)) {
    const Json found = read_json(mark);
    if (found == identity) return;
    const bool has_seed = found.is_object() && found.contains("seed");
    throw usage_error("{} holds another demonstration (seed {}, wanted {}): choose another folder",
                      folder.string(), has_seed ? found["seed"].dump() : "unknown",
                      identity["seed"].dump());
  }
  if (fs::exists(folder, error) && !fs::is_directory(folder, error)) {
    throw usage_error("{} is a file, wanted a folder: choose another folder", folder.string());
  }
  if (fs::exists(folder, error) && !fs::is_empty(folder, error)) {
    throw usage_error("{} is not empty and holds no demonstration: choose another folder",
                      folder.string());
  }
  fs::create_directories(folder, error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
  write_json(mark, identity);
}

/// A run's results, made now unless they are there.
Json run_model(const DemoRequest& request, const std::string& model) {
  RunRequest run_request;
  run_request.model = model;
  run_request.dataset = request.folder / "dataset";
  run_request.settings = demo_settings(request.seed);
  run_request.settings.push_back({"threads", request.threads, "demo"});
  run_request.command = request.command;
  run_request.log = request.log;
  run_request.stop_requested = request.stop_requested;
  run_request.progress = request.progress;
  const fs::path folder = request.folder / "runs" / model;
  if (run_finished(folder)) return read_results(folder).json();
  if (folder_exists(folder / "checkpoints" / "last")) {
    run_request.resume = folder;
    run_request.settings.clear();
  } else {
    run_request.output = folder;
  }
  reset_peak_memory();
  return run(run_request).result.json();
}

Json table_row(const Json& results) {
  const auto number = [](const Json& from, std::initializer_list<const char*> keys) {
    const Json* at = &from;
    for (const char* key : keys) {
      if (!at->is_object() || !at->contains(key)) return Json();
      at = &(*at)[key];
    }
    return *at;
  };
  Json epoch_s = number(results, {"time_s", "epoch_median"});
  if (epoch_s.is_null()) epoch_s = number(results, {"time_s", "train"});  // closed form: one pass
  return {{"model", results["model"]},
          {"recall@20", number(results, {"test", "recall@20"})},
          {"ndcg@20", number(results, {"test", "ndcg@20"})},
          {"cold_recall@20", number(results, {"slices", "cold", "metrics", "recall@20"})},
          {"epoch_s", epoch_s},
          {"peak_rss_mb", number(results, {"peak_rss_mb"})},
          {"valid_recall@20", number(results, {"valid", "recall@20"})}};
}

/// The first three users with a dozen purchases in train, what they last bought, what to offer.
Json recommend_some(const DemoRequest& request, const std::string& model) {
  const Recommender recommender(
      load_bundle(request.folder / "runs" / model / "model", request.log));
  const auto version = recommender.version();
  const Dataset& data = *version->data;
  Json users = Json::array();
  for (int64_t user = 0; user < data.n_users && users.size() < 3; ++user) {
    const auto bought = data.train.of(user);
    if (bought.size() < 12) continue;
    Json one = {{"user", std::string(data.user_ids[user])},
                {"bought", Json::array()},
                {"items", Json::array()}};
    for (const int32_t item : bought.last(3)) {
      one["bought"].push_back(data.item_columns.title(item));
    }
    Ask ask;
    ask.users = {std::string(data.user_ids[user])};
    ask.n = 5;
    const std::vector<Answer> answers = recommender.recommend(ask);
    for (const auto& [item, score] : answers.at(0).items) {
      one["items"].push_back({{"id", std::string(version->catalogue->id(item))},
                              {"title", std::string(version->catalogue->title(item))},
                              {"score", score}});
    }
    users.push_back(std::move(one));
  }
  return {{"model", model}, {"users", users}};
}

std::string cell(const Json& value, const char* format, int width) {
  return fmt::format(
      "{:>{}}",
      value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>()) : std::string("-"),
      width);
}

}  // namespace

void make_shop(const fs::path& folder, uint64_t seed) {
  const auto products = make_products(seed);
  const auto people = make_people(seed);
  const auto events = make_events(seed, products, people);
  write_folder(folder, [&](const fs::path& place) {
    fs::create_directory(place / "images");
    std::string items;
    AttributeRows image(Random(seed, "demo/image"), 0.25), text(Random(seed, "demo/text"), 0.25);
    for (int item = 0; item < kItems; ++item) {
      const Product& product = products[static_cast<size_t>(item)];
      items += fmt::format(
          R"({{"item_id":"{}","title":"{}","categories":["{}"],"colour":"{}","pattern":"{}",)"
          R"("material":"{}","price":{}.{:02}}})"
          "\n",
          item_id(item), title_of(product), kCategories[static_cast<size_t>(product.category)].name,
          kColours[static_cast<size_t>(product.colour)].name,
          kPatterns[static_cast<size_t>(product.pattern)],
          kMaterials[static_cast<size_t>(product.material)], product.cents / 100,
          product.cents % 100);
      text.add(item, {{product.category, kCategories.size()},
                      {product.colour, kColours.size()},
                      {product.material, kMaterials.size()},
                      {product.price_band, kPriceWords.size()}});
      if (!product.pictured) continue;
      const Product& shown = products[static_cast<size_t>(product.pictured_as)];
      write_file(place / "images" / (item_id(item) + ".png"), picture(shown));
      image.add(item, {{shown.category, kCategories.size()},
                       {shown.colour, kColours.size()},
                       {shown.pattern, kPatterns.size()}});
    }
    write_file(place / "items.jsonl", items);
    image.write(place, "image");
    text.write(place, "text");
    std::string rows = "user_id\titem_id\ttimestamp\n";
    for (const Event& event : events) {
      rows += fmt::format("{}\t{}\t{}\n", user_id(event.user), item_id(event.item), event.time);
    }
    write_file(place / "events.tsv", rows);
    write_file(place / "README.txt", kReadme);
  });
}

Json demo(const DemoRequest& request) {
  Json settings = Json::object();
  for (const auto& setting : demo_settings(request.seed)) settings[setting.name] = setting.value;
  claim(request.folder, {{"format", 1}, {"seed", request.seed}, {"settings", settings}});
  const fs::path source = request.folder / "source", dataset = request.folder / "dataset";
  if (!fs::exists(source)) {
    request.log.info("making up a shop in {}", source.string());
    make_shop(source, request.seed);
  }
  if (!fs::exists(dataset)) {
    ImportOptions options;
    options.paths = {source / "events.tsv"};
    options.items = source / "items.jsonl";
    options.reading.item_id_col = "item_id";
    options.reading.text = {"title"};
    options.reading.images = source / "images";
    options.output = dataset;
    options.split = "temporal-global";
    options.seed = request.seed;
    import_dataset(options, request.log);
  }
  Json result = {{"folder", request.folder.string()}, {"seed", request.seed}};
  result["table"] = Json::array();
  std::string best;
  double best_score = -1;
  for (const char* model : kModels) {
    const Json row = table_row(run_model(request, model));
    // As always, valid chooses and test only tells.
    const double score =
        row["valid_recall@20"].is_number() ? row["valid_recall@20"].get<double>() : 0.0;
    if (score > best_score) {
      best_score = score;
      best = model;
    }
    result["table"].push_back(row);
  }
  result["recommendations"] = recommend_some(request, best);
  return result;
}

std::string demo_text(const Json& result, const std::string& program) {
  std::string out = fmt::format(
      "A made-up shop: {} products, {} people, {} purchases; trained on the first 80 %, tested on "
      "the "
      "last 10 %.\nCold: products that nobody bought before the test began. Protocol strict, seed "
      "{}.\n\n",
      kItems, kUsers, kEvents, result["seed"].dump());
  out += fmt::format("{:<12}{:>11}{:>11}{:>16}{:>11}{:>13}\n", "model", "recall@20", "ndcg@20",
                     "cold recall@20", "s/epoch", "peak memory");
  for (const Json& row : result["table"]) {
    out += fmt::format("{:<12}", row["model"].get<std::string>());
    out += cell(row["recall@20"], "{:.4f}", 11) + cell(row["ndcg@20"], "{:.4f}", 11) +
           cell(row["cold_recall@20"], "{:.4f}", 16) + cell(row["epoch_s"], "{:.2f}", 11) +
           cell(row["peak_rss_mb"], "{:.0f} MB", 13) + "\n";
  }
  const Json& recommendations = result["recommendations"];
  const auto model = recommendations["model"].get<std::string>();
  out += fmt::format("\n{} did best on valid. It offers\n", model);
  for (const Json& one : recommendations["users"]) {
    std::vector<std::string> bought;
    for (const Json& title : one["bought"]) bought.push_back(title.get<std::string>());
    out += fmt::format("\n{}, who last bought {}:\n", one["user"].get<std::string>(),
                       fmt::join(bought, "; "));
    for (const Json& item : one["items"]) {
      out += fmt::format("  {}  {}\n", item["id"].get<std::string>(),
                         item["title"].get<std::string>());
    }
  }
  const auto folder = result["folder"].get<std::string>();
  out += fmt::format(
      "\nTo go on:\n"
      "  {0} inspect {1}/source/events.tsv\n"
      "  {0} recommend {1}/runs/{2}/model --users u0003 -n 10\n"
      "  {0} similar {1}/runs/VBPR/model p0001 --by image\n"
      "  {0} train -m VBPR -d {1}/dataset --modalities text\n"
      "  {0} inspect YOUR_FILE; {0} import YOUR_FILE -o YOUR_DATASET",
      program, folder, model);
  return out;
}

}  // namespace tessera

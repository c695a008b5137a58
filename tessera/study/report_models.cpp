#include "tessera/study/report_models.h"

#include <map>

#include "tessera/model/offers.h"
#include "tessera/study/quality.h"
#include "tessera/study/report_pamd.h"
#include "tessera/study/report_views.h"

namespace tessera {
namespace {

constexpr size_t kMostNumbers = 400;  // of a model without a page of its own

/// The models with a page of their own.
const std::map<std::string, Json (*)(const Json& facts)> kPages = {{"PAMD", pamd_sections},
                                                                   {"R2MR", quality_sections}};

}  // namespace

Json model_facts(const std::string& name, Model& model, const Dataset& data) {
  Reporter* reporter = model.offers().report;
  if (reporter == nullptr) return nullptr;
  const auto quality = reporter->quality();
  return quality ? quality_report(name, *quality, model.data()) : reporter->report(held_out(data));
}

Json model_sections(const std::string& name, const Json& facts) {
  if (facts.is_null()) return Json::array();
  if (const auto page = kPages.find(name); page != kPages.end()) return page->second(facts);
  Json out = section("What " + name + " reports");
  Json table = block("table", "Numbers");
  table["columns"] = Json::array({"what", "value"});
  table["rows"] = Json::array();
  flatten(facts, "", table["rows"]);
  if (table["rows"].size() > kMostNumbers) {
    table["rows"].erase(table["rows"].begin() + kMostNumbers, table["rows"].end());
  }
  out["blocks"].push_back(table);
  return Json::array({out});
}

}  // namespace tessera

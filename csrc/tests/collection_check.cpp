// Compares our reader with libjpeg-turbo's `jpeg_read_coefficients` on collections of files that others made.
//
// Usage: collection_check [--mutations N] [--slow SECONDS] [--verbose] FOLDER...
//
// Takes every file below the folders that begins with FF D8, whatever its name, and N damaged copies of each. Each is
// read strictly and tolerantly, with and without pixels, by each decoder, within the default limits of
// afd_serve.jpeg. Prints a table with a row for each folder, and ends with 1 if there was any finding. Meant to be
// built with -DAFD_SANITIZE=address,undefined: a child process does the work, and its end is a finding, not ours.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "outcome.h"

namespace {

using Bytes = std::vector<std::uint8_t>;
using afd::ErrorKind;
using afd::Outcome;

constexpr unsigned kHangSeconds = 900;  // all ways to read one file, under sanitizers, on a busy machine

// What a file showed. Those up to kUnsupported are as it should be.
enum Verdict {
  kEqual,        // libjpeg-turbo has no warning; our coefficients are its
  kWarned,       // libjpeg-turbo warns; our coefficients are its in tolerant mode
  kIncomplete,   // libjpeg-turbo has no warning, but our strict mode says what is missing; tolerant: equal
  kRefused,      // libjpeg-turbo gives up, and so does our strict mode
  kLimit,        // passes a limit of ours
  kUnsupported,  // libjpeg-turbo reads it, and we do not: two or more than four components, or one without scan and
                 // table
  kDifferent,    // finding: coefficients, tables or pixels differ, or the verdicts do
  kDisagreeing,  // finding: our decoders do not do the same
  kSlow,         // finding: a read took longer than it may
  kHung,         // finding
  kDied,         // finding: a crash, an exit, a sanitizer's complaint, a leak
  kVerdicts
};

constexpr const char* kNames[kVerdicts] = {"equal",     "warned",      "incomplete", "refused", "limit", "unsupported",
                                           "DIFFERENT", "DISAGREEING", "SLOW",       "HUNG",    "DIED"};

// Survives the child that fills it.
struct Progress {
  std::size_t started;
  std::size_t finished;
  std::uint32_t counts[kVerdicts];
  double slowest_seconds;
};

struct Settings {
  int mutations = 0;
  double slow_seconds = 1;  // without sanitizers
  bool verbose = false;
};

struct Reference {
  bool complete = false;
  std::size_t warnings = 0;
  std::vector<JCOEF> coefficients;
  std::vector<std::optional<afd::QuantTable>> quant_tables;  // none of a component without a scan
};

std::size_t round_up(JDIMENSION value, int multiple) {
  const auto step = static_cast<std::size_t>(multiple);
  return (value + step - 1) / step * step;
}

// With the padding to whole MCUs, which libjpeg-turbo decodes as well.
void append_component(jpeg_decompress_struct& cinfo, jvirt_barray_ptr array, const jpeg_component_info& info,
                      Reference& reference) {
  const std::size_t width = round_up(info.width_in_blocks, info.h_samp_factor);
  const std::size_t height = round_up(info.height_in_blocks, info.v_samp_factor);
  for (JDIMENSION y = 0; y < height; ++y) {
    JBLOCKARRAY row = cinfo.mem->access_virt_barray(reinterpret_cast<j_common_ptr>(&cinfo), array, y, 1, FALSE);
    reference.coefficients.insert(reference.coefficients.end(), row[0][0], row[0][0] + width * DCTSIZE2);
  }
  std::optional<afd::QuantTable>& table = reference.quant_tables.emplace_back();
  if (info.quant_table != nullptr) std::copy_n(info.quant_table->quantval, DCTSIZE2, table.emplace().begin());
}

// libjpeg-turbo as its documentation says, with its own memory manager and without any code of ours.
Reference reference_of(const Bytes& file) {
  Reference reference;
  jpeg_decompress_struct cinfo{};
  jvirt_barray_ptr* arrays = nullptr;
  afd::ErrorManager errors(true);
  cinfo.err = errors.base();
  reference.complete = errors.guarded([&] {
    jpeg_create_decompress(&cinfo);
    jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_read_header(&cinfo, TRUE);
    arrays = jpeg_read_coefficients(&cinfo);
  });
  if (reference.complete) {
    for (int c = 0; c < cinfo.num_components; ++c) append_component(cinfo, arrays[c], cinfo.comp_info[c], reference);
  }
  reference.warnings = errors.warning_count();
  jpeg_destroy_decompress(&cinfo);
  return reference;
}

// The pixels of an ordinary decode; nothing where there are none or they would need a conversion of ours.
Bytes reference_pixels(const Bytes& file) {
  Bytes samples;
  jpeg_decompress_struct cinfo{};
  afd::ErrorManager errors(true);
  cinfo.err = errors.base();
  bool decoded = errors.guarded([&] {
    jpeg_create_decompress(&cinfo);
    jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_read_header(&cinfo, TRUE);
    cinfo.out_color_space = JCS_RGB;
    jpeg_start_decompress(&cinfo);
  });
  if (decoded) samples.resize(std::size_t{3} * cinfo.output_width * cinfo.output_height);
  decoded = decoded && errors.guarded([&] {
    while (cinfo.output_scanline < cinfo.output_height) {
      JSAMPROW row = samples.data() + std::size_t{3} * cinfo.output_width * cinfo.output_scanline;
      jpeg_read_scanlines(&cinfo, &row, 1);
    }
  });
  jpeg_destroy_decompress(&cinfo);
  return decoded ? samples : Bytes();
}

// The outcome of reading in one mode, if all decoders agree on it.
class Mode {
 public:
  Mode(const Bytes& file, bool tolerant, bool pixels, double& slowest) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);  // ASan sees a read past its end
    std::copy(file.begin(), file.end(), exact.get());
    afd::ReadOptions options;
    options.pixels = pixels;
    bool first = true;
    for (const afd::Decoder decoder : {afd::Decoder::kLibjpeg, afd::Decoder::kPortable, afd::Decoder::kFastest}) {
      options.decoder = decoder;
      const std::clock_t start = std::clock();  // the processor's time: others may keep the machine busy
      Outcome next = afd::outcome_of(exact.get(), file.size(), afd::kDefaultLimits, tolerant, options);
      slowest = std::max(slowest, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
      agree_ = agree_ && (first || next == outcome_);
      outcome_ = std::move(next);
      first = false;
    }
  }

  bool agree() const { return agree_; }
  bool complete() const { return !outcome_.failure; }
  bool failed_with(ErrorKind kind) const { return outcome_.failure == kind; }
  const Outcome& outcome() const { return outcome_; }

 private:
  Outcome outcome_;
  bool agree_ = true;
};

struct Modes {
  explicit Modes(const Bytes& file)
      : strict(file, false, false, slowest),
        tolerant(file, true, false, slowest),
        strict_pixels(file, false, true, slowest),
        tolerant_pixels(file, true, true, slowest) {}

  bool agree() const { return strict.agree() && tolerant.agree() && strict_pixels.agree() && tolerant_pixels.agree(); }

  double slowest = 0;
  Mode strict;
  Mode tolerant;
  Mode strict_pixels;
  Mode tolerant_pixels;
};

bool same(const Outcome& ours, const Reference& reference) {
  const auto same_table = [](const afd::QuantTable& left, const std::optional<afd::QuantTable>& right) {
    return !right || left == *right;
  };
  return ours.coefficients == reference.coefficients &&
         std::equal(ours.quant_tables.begin(), ours.quant_tables.end(), reference.quant_tables.begin(),
                    reference.quant_tables.end(), same_table);
}

bool lacks_table(const Reference& reference) {
  const auto& tables = reference.quant_tables;
  return std::any_of(tables.begin(), tables.end(), [](const auto& table) { return !table; });
}

// Every mode that gives a picture gives libjpeg-turbo's.
bool all_equal(const Modes& modes, const Reference& reference) {
  for (const Mode* mode : {&modes.strict, &modes.tolerant, &modes.strict_pixels, &modes.tolerant_pixels}) {
    if (mode->complete() && !same(mode->outcome(), reference)) return false;
  }
  return true;
}

Verdict verdict_on(const Bytes& file, const Modes& modes) {
  if (!modes.agree()) return kDisagreeing;
  if (modes.strict.failed_with(ErrorKind::kTooLarge)) return kLimit;
  const Reference reference = reference_of(file);
  if (!reference.complete) return modes.strict.complete() ? kDifferent : kRefused;
  if (modes.strict.failed_with(ErrorKind::kUnsupported)) return kUnsupported;
  if (!modes.tolerant.complete() && lacks_table(reference)) return kUnsupported;
  if (!modes.tolerant.complete() || !all_equal(modes, reference)) return kDifferent;
  if (reference.warnings > 0) return kWarned;
  if (!modes.strict.complete()) return kIncomplete;
  const Bytes pixels = reference_pixels(file);
  const bool comparable = !pixels.empty() && modes.strict_pixels.complete();
  return comparable && modes.strict_pixels.outcome().samples != pixels ? kDifferent : kEqual;
}

// A copy with some damage: bytes changed, markers put in, a part left out, doubled or cut off.
Bytes mutated(const Bytes& file, unsigned number) {
  std::minstd_rand random(static_cast<unsigned>(file.size()) * 31 + number + 1);
  const auto below = [&](std::size_t count) { return static_cast<std::size_t>(random() >> 3) % count; };
  Bytes copy = file;
  for (std::size_t changes = 1 + below(6); changes > 0 && copy.size() > 4; --changes) {
    const std::size_t position = 2 + below(copy.size() - 3);
    const auto at = copy.begin() + static_cast<std::ptrdiff_t>(position);
    const std::size_t length = std::min(copy.size() - position, 1 + below(64));
    const Bytes part(at, at + static_cast<std::ptrdiff_t>(length));
    switch (below(8)) {
      case 0:
        copy.erase(at, at + static_cast<std::ptrdiff_t>(length));
        break;
      case 1:
        copy.insert(at, part.begin(), part.end());
        break;
      case 2:
        copy.resize(position);
        break;
      case 3:
        copy[position] = 0xFF;
        copy[position + 1 < copy.size() ? position + 1 : position] = static_cast<std::uint8_t>(0xC0 + below(64));
        break;
      default:
        copy[position] = static_cast<std::uint8_t>(below(256));
    }
  }
  return copy;
}

Bytes bytes_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return Bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::vector<std::filesystem::path> jpegs_below(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    char start[2] = {};
    std::ifstream(entry.path(), std::ios::binary).read(start, 2);
    if (start[0] == '\xFF' && start[1] == '\xD8') paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void report(Progress& progress, Verdict verdict, const std::filesystem::path& path, unsigned copy, bool shown) {
  ++progress.counts[verdict];
  if (!shown && verdict <= kUnsupported) return;
  std::printf("%s: %s", kNames[verdict], path.c_str());
  if (copy > 0) std::printf(", damaged copy %u", copy);
  std::printf("\n");
  std::fflush(stdout);
}

// Item `i` is the file itself or one of its damaged copies.
struct Collection {
  const std::filesystem::path& path_of(std::size_t i) const { return paths[i / copies]; }
  unsigned copy_of(std::size_t i) const { return static_cast<unsigned>(i % copies); }
  std::size_t size() const { return paths.size() * copies; }

  std::vector<std::filesystem::path> paths;
  std::size_t copies;
};

void check_from(const Collection& collection, Progress& progress, const Settings& settings) {
  while (progress.finished < collection.size()) {
    const std::size_t i = progress.finished;
    progress.started = i + 1;
    alarm(kHangSeconds);
    Bytes file = bytes_of(collection.path_of(i));
    if (collection.copy_of(i) > 0) file = mutated(file, collection.copy_of(i));
    const Modes modes(file);
    report(progress, verdict_on(file, modes), collection.path_of(i), collection.copy_of(i), settings.verbose);
    if (modes.slowest > settings.slow_seconds)
      report(progress, kSlow, collection.path_of(i), collection.copy_of(i), true);
    progress.slowest_seconds = std::max(progress.slowest_seconds, modes.slowest);
    progress.finished = i + 1;
  }
}

// In children, one after the other, until the last one comes through to the end.
void check_in_children(const Collection& collection, Progress& progress, const Settings& settings) {
  for (bool done = false; !done;) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child < 0) std::exit(2);
    if (child == 0) {
      check_from(collection, progress, settings);
      std::exit(0);  // here LeakSanitizer looks for leaks
    }
    int status = 0;
    waitpid(child, &status, 0);
    done = progress.finished == collection.size();
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
    const bool hung = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
    const std::size_t i = progress.started - 1;
    report(progress, hung ? kHung : kDied, collection.path_of(i), collection.copy_of(i), true);
    progress.finished = progress.started;
  }
}

bool check_folder(const std::filesystem::path& folder, Progress& progress, const Settings& settings) {
  progress = {};
  Collection collection{jpegs_below(folder), static_cast<std::size_t>(settings.mutations) + 1};
  if (collection.size() > 0) check_in_children(collection, progress, settings);
  std::printf("%s\t%zu", folder.filename().c_str(), collection.size());
  for (const std::uint32_t count : progress.counts) std::printf("\t%u", count);
  std::printf("\t%.3f\n", progress.slowest_seconds);
  return std::all_of(progress.counts + kDifferent, progress.counts + kVerdicts, [](auto count) { return count == 0; });
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  std::vector<std::filesystem::path> folders;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--mutations") == 0 && i + 1 < argc) {
      settings.mutations = std::max(0, std::atoi(argv[++i]));
    } else if (std::strcmp(argv[i], "--slow") == 0 && i + 1 < argc) {
      settings.slow_seconds = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--verbose") == 0) {
      settings.verbose = true;
    } else {
      folders.emplace_back(argv[i]);
    }
  }
  if (folders.empty()) {
    std::fprintf(stderr, "usage: collection_check [--mutations N] [--slow SECONDS] [--verbose] FOLDER...\n");
    return 2;
  }
  void* shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 2;
  std::printf("collection\tfiles");
  for (const char* name : kNames) std::printf("\t%s", name);
  std::printf("\tslowest read, s\n");
  bool fine = true;
  for (const auto& folder : folders) fine = check_folder(folder, *static_cast<Progress*>(shared), settings) && fine;
  return fine ? 0 : 1;
}

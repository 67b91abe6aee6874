// The number of barriers that mining takes for each anchor, printed for each strategy.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/triplet.cu"

using namespace occfast;

int main() {
  constexpr int64_t rows = 2, columns = 300, bins = 16; // two anchors of a batch
  for (const int64_t members : {10, 300}) {             // of a class: 300 are two loads of positives
    std::vector<float> products(rows * columns), values, embeddings(columns), squares(columns), nearest(2 * rows);
    std::vector<int64_t> order(columns), start(rows), stop(rows), histogram(2 * bins);
    std::vector<int32_t> counts(rows * columns);
    std::vector<double> records(rows * kSlots);
    const double top = 10;
    for (int64_t i = 0; i < columns; ++i) {
      order[i] = i;
    }
    for (int64_t i = 0; i < rows; ++i) {
      stop[i] = members; // they all are of the first class
      for (int64_t j = 0; j < columns; ++j)
        products[i * columns + j] = -static_cast<float>(std::fabs(std::sin(static_cast<double>(j))));
    }
    const Pairs pairs{rows, columns, 1, 0, true, order.data(), start.data(), stop.data()};
    for (const Mining mining :
         {Mining::kAll, Mining::kViolating, Mining::kSemihard, Mining::kSemihardRandom, Mining::kHardest}) {
      values = products;
      const TripletParams params{Distance::kSquaredEuclidean, mining, true, true, 0.2, 0.7, 9, 4};
      const uint64_t before = emulator::machine.barrier_generation;
      const int status =
          mine_triplets(MineTriplets{values.data(), Dtype::kFloat32, embeddings.data(), embeddings.data(),
                                     squares.data(), squares.data(), pairs, params, &top, bins, counts.data(),
                                     records.data(), nearest.data(), histogram.data()},
                        ExecContext{1, nullptr});
      if (status != 0) return 3;
      const uint64_t barriers = emulator::machine.barrier_generation - before;
      std::printf("%d %d %.2f\n", static_cast<int>(members), static_cast<int>(mining),
                  static_cast<double>(barriers) / rows);
    }
  }
  return 0;
}

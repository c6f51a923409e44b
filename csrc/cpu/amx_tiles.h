// Tile products on tile registers (AMX).

namespace jair {
namespace JAIR_ISA {

// C tiles 0 = (0,0), 1 = (0,1), 2 = (1,0), 3 = (1,1); A tiles 4, 5; B tiles 6, 7. R x V of them are in use. All eight
// have 16 rows of 64 bytes, for the life of the object, on this thread.
class TileUnit {
 public:
  explicit TileUnit(Scratch::Frame&) {
    // Constant, as the intrinsic claims to read 8 bytes: of a variable the compiler might not write the others.
    struct alignas(64) Config {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    };
    static constexpr Config kConfig{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&kConfig);
  }
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  // Vectors run beside the tiles: what they do between two products costs nothing.
  static constexpr bool kApart = true;

  template <int R, int V>
  void open(SumTiles c, bool add) const {
    finish_stores();
    if (add) {
      _tile_loadd(0, c.data, c.stride * 4);
      if constexpr (V == 2) _tile_loadd(1, c.data + c.column, c.stride * 4);
      if constexpr (R == 2) _tile_loadd(2, c.data + c.row, c.stride * 4);
      if constexpr (R == 2 && V == 2) _tile_loadd(3, c.data + c.row + c.column, c.stride * 4);
    } else {
      _tile_zero(0);
      if constexpr (V == 2) _tile_zero(1);
      if constexpr (R == 2) _tile_zero(2);
      if constexpr (R == 2 && V == 2) _tile_zero(3);
    }
  }

  template <int R, int V>
  void close(SumTiles c) const {
    _tile_stored(0, c.data, c.stride * 4);
    if constexpr (V == 2) _tile_stored(1, c.data + c.column, c.stride * 4);
    if constexpr (R == 2) _tile_stored(2, c.data + c.row, c.stride * 4);
    if constexpr (R == 2 && V == 2) _tile_stored(3, c.data + c.row + c.column, c.stride * 4);
  }

  // C += A B over `depth` rows of B, those that fill up its last tile being 0. Of the rows of C `rows` matter.
  template <int R, int V>
  void multiply(int64_t /*rows*/, int64_t depth, Tiles a, Tiles b, Ahead* ahead = nullptr) const {
    finish_stores();
    for (int64_t k = 0; k < (depth + 31) / 32; ++k) {
      if (ahead) ahead->step();
      _tile_loadd(4, a.data + k * a.step, a.stride * 2);
      _tile_loadd(6, b.data + k * b.step, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (V == 2) {
        _tile_loadd(7, b.data + b.outer + k * b.step, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (R == 2) {
        _tile_loadd(5, a.data + a.outer + k * a.step, a.stride * 2);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (R == 2 && V == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }

  // The same for A = W^T in tiles that turn() made.
  template <int R, int V>
  void multiply_turned(int64_t rows, int64_t depth, Tiles a, Tiles b) const {
    multiply<R, V>(rows, depth, a, b);
  }

  // A tile of W^T: 16 columns of 32 rows of weights, rows from `count` on being 0.
  static void turn(const float* weights, int64_t ldw, int64_t count, uint16_t* out) {
    __m512i half[2][16];
    for (int64_t n = 0; n < 32; ++n) {
      half[n / 16][n % 16] = n < count ? _mm512_loadu_si512(weights + n * ldw) : _mm512_setzero_si512();
    }
    transpose16(half[0]);
    transpose16(half[1]);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, narrow((__m512)half[0][i], (__m512)half[1][i]));
  }

 private:
  // gcc's intrinsics do not tell the compiler that a tile is loaded from memory: what was written there must not be
  // moved behind them.
  static void finish_stores() { __asm__ volatile("" : : : "memory"); }
};

}  // namespace JAIR_ISA
}  // namespace jair

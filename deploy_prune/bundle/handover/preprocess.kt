// From a picture's bytes to what $artifact takes, and back to the picture. Needs Kotlin and nothing else.
import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

const val CHANNELS = $channels
const val HEIGHT = $height
const val WIDTH = $width
const val PIXELS = HEIGHT * WIDTH
val MEAN = floatArrayOf($mean_f)
val STD = floatArrayOf($std_f)

/**
 * How a picture is brought to the network's size. CUT: it covers the size, and what is too much is cut off evenly;
 * LETTERBOX: all of it fits in, and PAD is evenly around it; STRETCH: height and width are scaled on their own.
 */
enum class Fit { CUT, LETTERBOX, STRETCH }

val FIT = Fit.$fit_upper
const val PAD = $pad

/** From a channel, and from a pixel, to the next one in the input, laid out $axes. */
const val CHANNEL_STEP = $channel_step
const val PIXEL_STEP = $pixel_step

/**
 * Bytes [height, width, CHANNELS], $colour. A photo must be upright: BitmapFactory leaves the EXIF orientation aside;
 * lay transparency on white.
 */
class Picture(val height: Int, val width: Int, val bytes: ByteArray)

/** The part of a picture that is used, and where it lies in the network's input. */
class Placement(
    val left: Double, val top: Double, val right: Double, val bottom: Double,
    val toLeft: Int, val toTop: Int, val toRight: Int, val toBottom: Int
)

fun placement(height: Int, width: Int): Placement {
    val high = height.toDouble()
    val wide = width.toDouble()
    if (FIT == Fit.STRETCH) return Placement(0.0, 0.0, wide, high, 0, 0, WIDTH, HEIGHT)
    if (FIT == Fit.CUT) {
        val usedWide = min(wide, high * WIDTH / HEIGHT)
        val usedHigh = min(high, wide * HEIGHT / WIDTH)
        val left = (wide - usedWide) / 2
        val top = (high - usedHigh) / 2
        return Placement(left, top, left + usedWide, top + usedHigh, 0, 0, WIDTH, HEIGHT)
    }
    val scale = min(WIDTH / wide, HEIGHT / high)
    val innerWide = max(1, round(wide * scale).toInt()) // a half goes to the even number
    val innerHigh = max(1, round(high * scale).toInt())
    val left = (WIDTH - innerWide) / 2
    val top = (HEIGHT - innerHigh) / 2
    return Placement(0.0, 0.0, wide, high, left, top, left + innerWide, top + innerHigh)
}

/** From a place in a picture, in pixels, to one in the network's input: times scale, plus shift. */
class Mapping(val scaleX: Double, val scaleY: Double, val shiftX: Double, val shiftY: Double)

fun mapping(height: Int, width: Int): Mapping {
    val p = placement(height, width)
    val scaleX = (p.toRight - p.toLeft) / (p.right - p.left)
    val scaleY = (p.toBottom - p.toTop) / (p.bottom - p.top)
    return Mapping(scaleX, scaleY, p.toLeft - p.left * scaleX, p.toTop - p.top * scaleY)
}

/** What a scaled pixel is made of: the pixels from first on, with these weights, which add up to 1 shl BITS. */
const val BITS = 22

class Taps(val first: Int, val weights: IntArray)

/**
 * Of each of count pixels that the stretch from..to of size pixels is scaled to. Linear between centres; where it gets
 * smaller, over as many pixels as go into one. As Pillow does it, to the last bit.
 */
fun taps(size: Int, from: Float, to: Float, count: Int): List<Taps> {
    val scale = (to - from).toDouble() / count
    val reach = max(scale, 1.0)
    return List(count) { i ->
        val centre = from + (i + 0.5) * scale
        val first = max(0, (centre - reach + 0.5).toInt())
        val end = min(size, (centre + reach + 0.5).toInt())
        val shares = DoubleArray(end - first) { max(0.0, 1 - abs((first + it - centre + 0.5) * (1 / reach))) }
        val sum = shares.sum()
        Taps(first, IntArray(shares.size) { (0.5 + shares[it] / sum * (1 shl BITS)).toInt() })
    }
}

/** The sum of the bytes that these taps take, step bytes apart, the first at start. */
fun weighed(bytes: ByteArray, start: Int, step: Int, taps: Taps): Byte {
    var sum = 1 shl (BITS - 1)
    for (k in taps.weights.indices)
        sum += (bytes[start + (taps.first + k) * step].toInt() and 0xff) * taps.weights[k]
    return (sum shr BITS).coerceIn(0, 255).toByte()
}

/** A picture in the network's size: bytes [HEIGHT, WIDTH, CHANNELS]. */
fun fitted(picture: Picture): ByteArray {
    val p = placement(picture.height, picture.width)
    val wide = p.toRight - p.toLeft
    val high = p.toBottom - p.toTop
    val across = taps(picture.width, p.left.toFloat(), p.right.toFloat(), wide)
    val down = taps(picture.height, p.top.toFloat(), p.bottom.toFloat(), high)
    val rows = ByteArray(picture.height * wide * CHANNELS)
    val found = ByteArray(PIXELS * CHANNELS) { PAD.toByte() }
    for (y in 0 until picture.height)
        for (x in 0 until wide)
            for (c in 0 until CHANNELS)
                rows[(y * wide + x) * CHANNELS + c] =
                    weighed(picture.bytes, y * picture.width * CHANNELS + c, CHANNELS, across[x])
    for (y in 0 until high)
        for (x in 0 until wide)
            for (c in 0 until CHANNELS)
                found[((p.toTop + y) * WIDTH + p.toLeft + x) * CHANNELS + c] =
                    weighed(rows, x * CHANNELS + c, wide * CHANNELS, down[y])
    return found
}

/** A picture as the network takes it: float32, laid out $axes. */
fun preprocess(picture: Picture): FloatArray {
    val bytes = fitted(picture)
    val x = FloatArray(CHANNELS * PIXELS)
    for (c in 0 until CHANNELS)
        for (i in 0 until PIXELS)
            x[c * CHANNEL_STEP + i * PIXEL_STEP] =
                ((bytes[i * CHANNELS + c].toInt() and 0xff) / 255f - MEAN[c]) / STD[c]
    return x
}

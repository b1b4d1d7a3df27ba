// $artifact on Android: depend on com.microsoft.onnxruntime:onnxruntime-android, put the file into assets/.
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.nio.FloatBuffer

class Network(context: Context) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession =
        environment.createSession(
            context.assets.open("$artifact").readBytes(),
            // Denormal numbers, left as they are, take many times as long.
            OrtSession.SessionOptions().apply { addConfigEntry("session.set_denormal_as_zero", "1") }
        )

    /** All outputs for one picture, in order. Compare with sample/expected_0.npy and its like; Decode.kt reads them. */
    fun outputs(picture: Picture): List<FloatArray> {
        val x = FloatBuffer.wrap(preprocess(picture))
        val shape = longArrayOf(1, CHANNELS.toLong(), HEIGHT.toLong(), WIDTH.toLong())
        OnnxTensor.createTensor(environment, x, shape).use { fed ->
            session.run(mapOf(session.inputNames.first() to fed)).use { found ->
                return found.map { entry ->
                    val values = (entry.value as OnnxTensor).floatBuffer
                    FloatArray(values.remaining()).also { values.get(it) }
                }
            }
        }
    }

    override fun close() = session.close()
}
